"""Files that are whole or not there."""

import os
import subprocess
from pathlib import Path

import pytest

from lightning_diffusion.system.files import NotWritten, writable, write_bytes


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk]).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_what_is_renamed_into_place_is_on_the_disk_before_and_its_name_after(tmp_path, monkeypatch):
    steps, replace = [], os.replace

    def note(descriptor):
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).stat())

    def rename(source, target):
        steps.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    write_bytes(tmp_path / "a", b"content")
    file, renamed, folder = steps
    assert (file.st_ino, file.st_size) == ((tmp_path / "a").stat().st_ino, len(b"content")), "not all of the file"
    assert renamed == "renamed"
    assert folder.st_ino == tmp_path.stat().st_ino, "not the folder's names"


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
