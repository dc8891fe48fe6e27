"""Archives as data.root: unpacked as a folder would be, or refused in one line, and nothing written anywhere else."""

import io
import re
import stat
import tarfile
import zipfile

import pytest
import torch

from lightning_diffusion.data.archive import BLOCK, INDEX, unpacked
from lightning_diffusion.data.image_folder import ImageFolder
from lightning_diffusion.data.limited_reader import ENOUGH, RATIO, most
from tests.data.hostile import MB, SIZE, SMALL, little_memory, tar_info, tarred, tree, zipped

OPTIONS = {"channels": 3, "image_size": 8, "batch_size": 2}
IMAGES = ("d/cats/1.png", "d/cats/2.JPG", "d/dogs/3.png")
OTHERS = ("d/notes.txt", "d/inner.zip", "d/cats/._1.png", "__MACOSX/d/cats/._1.png")


def patched(content, *places):
    """Bytes changed behind each occurrence of a signature: (signature, offset, new bytes)."""
    content = bytearray(content)
    for signature, offset, new in places:
        at = content.find(signature)
        while at >= 0:
            content[at + offset : at + offset + len(new)] = new
            at = content.find(signature, at + 1)
    return bytes(content)


def unusual(kind, name="a.png", link="../../outside/secret.png"):
    return tar_info(name, 0, kind, link), None


ENCRYPTED = patched(zipped("a.png"), (b"PK\1\2", 8, b"\1\0"), (b"PK\3\4", 6, b"\1\0"))
PROMISES_LESS = patched(
    zipped("a.png", content=bytes(5 * MB)), (b"PK\1\2", 24, b"\x10\0\0\0"), (b"PK\3\4", 22, b"\x10\0\0\0")
)
CHECKSUM = patched(zipped("a.png"), (b"PK\1\2", 16, b"abcd"), (b"PK\3\4", 14, b"abcd"))
OVERLAPPING = patched(zipped(*(f"{i}.png" for i in range(8)), content=bytes(MB)), (b"PK\1\2", 42, bytes(4)))
LONG = 9 * MB  # length of a name or a header field, packed into a few kilobytes
PACKED_ONCE = tarred("d/1.png", "d/2.png", packed=False)

# name -> (ending, content or its maker, the message as a pattern)
REFUSED = {
    "zip-climbs": (".zip", zipped("1.png", "../evil.png"), r"member '../evil.png' climbs out of its folder"),
    "zip-climbs-from-below": (".zip", zipped("a/../../evil.png"), "climbs out"),
    "zip-climbs-by-backslashes": (".zip", zipped("..\\evil.png"), "climbs out"),
    "zip-climbs-without-image": (".zip", zipped("1.png", "../../evil.txt"), "climbs out"),
    "zip-absolute": (".zip", zipped("/evil/evil.png"), "has an absolute path"),
    "zip-drive": (".zip", zipped("C:\\evil.png"), "has an absolute path"),
    "zip-share": (".zip", zipped("\\\\server\\evil\\evil.png"), "has an absolute path"),
    "zip-link": (".zip", zipped("a.png", content=b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "is a link"),
    "zip-device": (".zip", zipped("a.png", mode=stat.S_IFCHR | 0o666), "is a link, a device or a pipe"),
    "zip-twice": (".zip", zipped("a.png", "a.png"), "member 'a.png' comes twice"),
    "zip-file-that-is-a-folder": (".zip", zipped("a.png", "a.png/b.png"), "comes twice"),
    "zip-folder-that-is-a-file": (".zip", zipped("a.png/b.png", "a.png"), "comes twice"),
    "zip-line-break-in-name": (".zip", zipped("a\nb.png"), r"member 'a\\nb.png' has control characters"),
    "zip-long-name": (".zip", zipped("x" * 300 + ".png"), "has too long a name"),
    "zip-long-path": (".zip", zipped("x/" * 600 + "a.png"), "has too long a name"),
    "zip-encrypted": (".zip", ENCRYPTED, r"member 'a.png' cannot be unpacked \(encrypted\)"),
    "zip-bzip2": (".zip", zipped("a.png", compression=zipfile.ZIP_BZIP2), "another method than deflate"),
    "zip-lzma": (".zip", zipped("a.png", compression=zipfile.ZIP_LZMA), "another method than deflate"),
    "zip-bomb": (
        ".zip",
        lambda: zipped("a.png", "b.png", content=bytes(ENOUGH // 2 + 1)),
        "member 'b.png' makes it more than 201,326,592 bytes",
    ),
    "zip-bomb-among-images": (".zip", lambda: zipped("1.txt", content=bytes(ENOUGH + 1)), "makes it more than"),
    "zip-bomb-of-overlapping-members": (".zip", OVERLAPPING, "cannot be unpacked"),
    "zip-promises-less": (".zip", PROMISES_LESS, "member 'a.png' cannot be unpacked"),
    "zip-wrong-checksum": (".zip", CHECKSUM, "member 'a.png' cannot be unpacked"),
    "zip-damaged-content": (
        ".zip",
        patched(zipped("a.png"), (b"PK\3\4", 45, b"garbage")),
        "member 'a.png' cannot be unpacked",
    ),
    "zip-cut": (".zip", zipped("a.png", "b.png")[:-60], "not a readable archive"),
    "zip-index-without-end": (".zip", zipped(*(f"{i:0250d}.png" for i in range(9)))[-900:], "not a readable archive"),
    "zip-is-text": (".zip", b"<html>not found</html>", "not a readable archive"),
    "zip-is-empty": (".zip", b"", "not a readable archive"),
    "zip-of-no-image": (".zip", zipped("a.txt"), "0 images below it"),
    "tar-climbs": (".tar.gz", tarred("1.png", "../evil.png"), "member '../evil.png' climbs out of its folder"),
    "tar-climbs-plain": (".tar", tarred("a/../../evil.png", packed=False), "climbs out"),
    "tar-absolute": (".tgz", tarred("/evil/evil.png"), "has an absolute path"),
    "tar-link": (".tar.gz", tarred(unusual(tarfile.SYMTYPE)), "is a link, a device or a pipe"),
    "tar-link-and-file-behind-it": (".tar", tarred(unusual(tarfile.SYMTYPE, "d", ".."), "d/evil.png"), ""),
    "tar-hard-link": (".tar.gz", tarred(unusual(tarfile.LNKTYPE)), "is a link, a device or a pipe"),
    "tar-pipe": (".tar.gz", tarred(unusual(tarfile.FIFOTYPE)), "is a link, a device or a pipe"),
    "tar-device": (".tar.gz", tarred(unusual(tarfile.CHRTYPE)), "is a link, a device or a pipe"),
    "tar-twice": (".tar.gz", tarred("a.png", "./a.png"), "comes twice"),
    "tar-long-name": (".tar.gz", tarred("x" * 300 + ".png"), "has too long a name"),
    "tar-bomb": (".tar.gz", tarred((tar_info("a.png", ENOUGH + 1), None)), "makes it more than 201,326,592 bytes"),
    "tar-bomb-among-images": (".tar.gz", tarred((tar_info("a.txt", 2**40), None)), "makes it more than"),
    "tar-bomb-in-a-name": (".tar.gz", tarred((tar_info("n", LONG, tarfile.GNUTYPE_LONGNAME), bytes(LONG))), "too long"),
    "tar-bomb-in-a-header": (".tar.gz", tarred((tar_info("n", LONG, tarfile.XHDTYPE), bytes(LONG))), "too long"),
    "tar-negative-size": (".tar.gz", tarred((tar_info("a.png", -512), None)), "makes it more than"),
    "tar-negative-header": (".tar.gz", tarred((tar_info("n", -512, tarfile.XHDTYPE), None)), "not a readable archive"),
    "tar-cut": (".tar", PACKED_ONCE[: -1024 - 100], "unexpected end of data"),
    "tar-cut-between-members": (".tar", tarred("d/1.png", "d/2.png", packed=False, end=False), "it is truncated"),
    "tar-damaged-header": (".tar", patched(PACKED_ONCE, (b"d/2.png", 0, b"x")), "one of its headers is damaged"),
    "tar.gz-cut": (".tar.gz", tarred("d/1.png", "d/2.png")[:-30], ""),
    "tar.gz-is-not-packed": (".tar.gz", PACKED_ONCE, "Not a gzipped file"),
    "tar-is-text": (".tar", b"hello" * 200, "not a readable archive"),
    "tar-is-empty": (".tar", b"", "not a readable archive"),
    "other-ending": (".rar", b"Rar!", "neither a folder nor one of .zip .tar .tar.gz .tgz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line_and_nothing_is_written(tmp_path, name):
    ending, content, message = REFUSED[name]
    cache, archive, outside = tmp_path / "a" / "b" / "cache", tmp_path / f"photos{ending}", tmp_path / "outside"
    cache.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_bytes(SMALL)
    archive.write_bytes(content() if callable(content) else content)
    before = tree(tmp_path)
    with little_memory(), pytest.raises((ValueError, FileNotFoundError)) as caught:
        ImageFolder(root=str(archive), cache_dir=str(cache), num_classes=None, **OPTIONS).setup()
    line = str(caught.value)
    assert line.startswith(f"data.root={archive}: ")
    assert re.search(message, line), line
    assert "\n" not in line
    after = tree(tmp_path)
    new = [path for path in after if path not in before and path.suffix != ".lock" and "no-image" not in name]
    assert not new
    assert all(after[path] == content for path, content in before.items())


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz", ".ZIP"])
def test_is_read_as_the_folder_would_be(tmp_path, ending):
    names = [*IMAGES, *OTHERS]
    make = zipped if ending.lower() == ".zip" else lambda *names: tarred(*names, packed=ending != ".tar")
    (tmp_path / f"photos{ending}").write_bytes(make(*names))
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SMALL)
    splits = []
    for root in (tmp_path / "photos" / "d", tmp_path / f"photos{ending}"):
        data = ImageFolder(root=str(root), cache_dir=str(tmp_path / "cache"), num_classes=2, **OPTIONS)
        data.prepare_data()
        data.setup()
        assert [path.relative_to(data.folder) for path in data.paths] == [
            path.relative_to(tmp_path / "photos" / "d") for path in (tmp_path / "photos" / name for name in IMAGES)
        ]
        splits.append([data.splits[split][torch.arange(len(data.splits[split]))] for split in ("train", "val")])
    for (images, labels), (others, their_labels) in zip(*splits, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


def test_is_unpacked_once_for_each_content_and_again_after_a_kill(tmp_path):
    archive, cache = tmp_path / "photos.zip", tmp_path / "cache"
    archive.write_bytes(zipped("1.png", "2.png"))
    folder = unpacked(archive, str(cache))
    (folder / "1.png").write_bytes(b"as it was left")
    archive.rename(tmp_path / "renamed.zip")
    assert unpacked(tmp_path / "renamed.zip", str(cache)) == folder
    assert (folder / "1.png").read_bytes() == b"as it was left"
    archive.write_bytes(zipped("1.png", "3.png"))
    other = unpacked(archive, str(cache))
    assert sorted(path.name for path in other.iterdir()) == ["1.png", "3.png"]
    other.rename(other.with_suffix(".partial"))  # what a killed process leaves
    (other.with_suffix(".partial") / "half.png").write_bytes(SMALL[:9])
    assert sorted(path.name for path in unpacked(archive, str(cache)).iterdir()) == ["1.png", "3.png"]
    assert sorted(path.suffix for path in cache.iterdir()) == ["", "", ".lock", ".lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "photos.zip").write_bytes(zipped("1.png", "2.png"))
    with pytest.raises(
        ValueError, match=r"data.cache_dir=\S+/file/cache: cannot be written .*; free some space or choose another"
    ):
        unpacked(tmp_path / "photos.zip", str(tmp_path / "file" / "cache"))


def test_members_without_content_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_diffusion.data.archive.most", lambda path: 9 * BLOCK)
    (tmp_path / "a.tar.gz").write_bytes(tarred(*((tar_info(f"{i}.txt", 0), None) for i in range(20))))
    with pytest.raises(ValueError, match=r"member '9.txt' makes it more than 4,608 bytes"):
        unpacked(tmp_path / "a.tar.gz", str(tmp_path / "cache"))


def test_what_a_file_may_unpack_to_grows_with_its_size(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert most(tmp_path / "a") == ENOUGH
    with (tmp_path / "a").open("wb") as file:
        file.truncate(ENOUGH)
    assert most(tmp_path / "a") == RATIO * ENOUGH


def test_an_index_of_hundreds_of_thousands_of_members_is_not_read(tmp_path):
    entry = b"PK\1\2" + bytes(24) + b"\1\0" + bytes(16) + b"a"
    index = entry * 500_000
    end = b"PK\5\6" + bytes(8) + len(index).to_bytes(4, "little") + bytes(6)
    (tmp_path / "a.zip").write_bytes(index + end)
    with little_memory(100), pytest.raises(ValueError, match="its index is too long"):
        unpacked(tmp_path / "a.zip", str(tmp_path / "cache"))


def test_members_of_celeba_s_number_fit():
    """200,000 of them, each with 24 bytes that Info-ZIP adds."""
    assert 202_599 * (46 + len("img_align_celeba/000001.jpg") + 24) < INDEX


def test_tarfile_s_own_archives_are_read(tmp_path):
    """With folders, long names and headers in both of the formats in use."""
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=format) as archive:
            for name in ("ä" * 60, "y" * 150):
                archive.addfile(tar_info(name, 0, tarfile.DIRTYPE))
                archive.addfile(tar_info(f"{name}/{name}.png", SIZE), io.BytesIO(SMALL))
        folder = unpacked(tmp_path / "a.tar.gz", str(tmp_path / f"cache{format}"))
        assert len(list(folder.rglob("*.png"))) == 2
