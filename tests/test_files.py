"""Files that are complete or not there."""

import os
import subprocess
from pathlib import Path

import pytest

from lightning_diffusion.system import files
from lightning_diffusion.system.files import NotWritten, csv_text, link, writable, write, write_bytes


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk]).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


class TestReplacing:
    """However an attempt ends, a file is complete or absent, and nothing else is left in the folder."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")
        return path

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("full\nof frames")])
    def test_an_error_leaves_the_file_before_and_names_the_reason(self, path, error):
        def fail(file):
            file.write(b"half")
            raise error

        reason = "No space left on device" if isinstance(error, OSError) else "full"
        with pytest.raises(NotWritten) as caught:
            write(path, fail)
        assert str(caught.value) == f"{path}: could not be written ({reason})"
        assert path.read_text() == "before"
        assert list(path.parent.iterdir()) == [path]

    def test_an_interruption_leaves_the_file_before(self, path):
        def stop(file):
            file.write(b"half")
            raise SystemExit(143)

        with pytest.raises(SystemExit):
            write(path, stop)
        assert path.read_text() == "before"
        assert list(path.parent.iterdir()) == [path]

    def test_content_and_name_are_on_the_disk_in_this_order(self, path, monkeypatch):
        """fsync of the file, rename, fsync of the folder: any other order can lose both contents in a power cut."""
        calls, sizes = [], []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(descriptor):
            calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            sizes.append(os.fstat(descriptor).st_size)
            fsync(descriptor)

        def noted_replace(source, target):
            calls.append((str(source), str(target)))
            replace(source, target)

        monkeypatch.setattr(files.os, "fsync", noted_fsync)
        monkeypatch.setattr(files.os, "replace", noted_replace)
        write_bytes(path, b"after")
        temporary = str(path.with_name(f".file.{os.getpid()}"))
        assert calls == [temporary, (temporary, str(path)), str(path.parent)]
        assert sizes[0] == len(b"after"), "fsync before all of the content was handed to the system"
        assert path.read_bytes() == b"after"

    def test_a_leftover_link_is_replaced_and_never_followed(self, path):
        other = path.with_name("other")
        other.write_text("other")
        path.with_name(f".file.{os.getpid()}").symlink_to("other")
        write_bytes(path, b"after")
        assert (path.read_text(), other.read_text(), path.is_symlink()) == ("after", "other", False)

    def test_a_link_replaces_a_file_or_a_link(self, path):
        for name in ("one", "two"):
            path.with_name(name).write_text(name)
            link(path, path.with_name(name))
            assert (os.readlink(path), path.read_text()) == (name, name)


def test_csv_quotes_cells_and_leaves_none_empty():
    rows = [["a", 'b "c"'], [1.5, None], ["x,y", "two\nlines"]]
    assert csv_text(rows) == 'a,"b ""c"""\r\n1.5,\r\n"x,y","two\nlines"\r\n'


class TestWritable:
    def test_leaves_nothing_behind(self, tmp_path):
        writable(tmp_path, "output_dir")
        writable(tmp_path / "a" / "b", "output_dir")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_or_a_dangling_link_in_the_way(self, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("nowhere")
        for name in ("file", "link"):
            for folder in (tmp_path / name, tmp_path / name / "a" / "b"):
                with pytest.raises(NotWritten, match=rf"^output_dir={folder}: .*{name} is not a folder"):
                    writable(folder, "output_dir")

    def test_paths_that_no_file_system_takes(self, tmp_path):
        for folder in (tmp_path / ("x" * 300), tmp_path / "a\0b"):
            with pytest.raises(NotWritten, match=r"^output_dir=.*cannot be written into"):
                writable(folder, "output_dir")

    def test_a_file_system_that_takes_no_files(self):
        with pytest.raises(NotWritten, match=r"^output_dir=/proc/a: cannot be written into"):
            writable(Path("/proc/a"), "output_dir")

    def test_a_full_disk(self, small_disk):
        (small_disk / "file").write_bytes(bytes(256 * 1024))
        with pytest.raises(NotWritten, match="No space left on device"):
            writable(small_disk / "new", "output_dir")
