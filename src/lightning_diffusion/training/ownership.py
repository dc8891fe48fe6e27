"""Exclusive ownership of a run's folder by one process, from before the first write until everything is closed.

The lock is a POSIX record lock on RUN/.lock. It ends with its process, however that ends, and forked workers do not
inherit it. It would also end if this process opened and closed that file elsewhere, so no other code may open it.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.checkpoints.folder import BEST, LAST, newest
from lightning_diffusion.checkpoints.seal import SAVED
from lightning_diffusion.runs.run import CHECKPOINT, CONFIG, CURVE, ENVIRONMENT, LEVELS, OVERRIDES, RESULT, relative
from lightning_diffusion.system.files import NotWritten, link, make_folder, remove_leftovers

LOCK = ".lock"
HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)


class _Owned(NamedTuple):
    folder: Path
    directory: int  # open, so that nothing else can have its number
    lock: int


_owned: list[_Owned] = []


@contextlib.contextmanager
def ownership() -> Iterator[None]:
    """Releases, at the end, the folders that were claimed inside."""
    try:
        yield
    finally:
        while _owned:
            _release(_owned.pop())


def own(folder: Path) -> None:
    """Claims an existing folder for this process, once or repeatedly. Only rank 0 does, for all ranks of its run.

    A file system without locks is reported; the folder is not protected then.

    Raises:
        NotWritten: another process owns the folder, or it is not writable.
    """
    if getattr(rank_zero_only, "rank", 0) or any(_is_at(owned, folder) for owned in _owned):
        return
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotWritten(f"run_dir={relative(folder)}: cannot be opened ({error.strerror})") from error
    try:
        _owned.append(_Owned(folder, directory, _lock(folder)))
    except BaseException:
        os.close(directory)
        raise


def check_owned() -> None:
    """Raises NotWritten if a folder that this process owns was removed or moved."""
    for owned in _owned:
        if not _is_at(owned, owned.folder):
            raise NotWritten(
                f"run_dir={relative(owned.folder)}: removed or moved while the run was writing to it; the run has "
                "stopped writing"
            )


def make_run_folder(folder: Path) -> None:
    """Makes a folder for a run's files, unless the run's own folder is gone. Raises NotWritten."""
    check_owned()
    make_folder(folder)


def resumes_in_place(ckpt_path: Any, run_dir: Any) -> bool:
    """Whether a run resumes in its own folder, from one of its own checkpoints."""
    folder = Path(run_dir)
    return ckpt_path is not None and Path(ckpt_path).resolve().is_relative_to(folder.resolve())


def tidy(run_dir: Path) -> None:
    """Repairs a run that was killed: removes half-written files, and links last.ckpt to the newest checkpoint."""
    remove_leftovers(run_dir, CONFIG, OVERRIDES, RESULT, CURVE, LEVELS, ENVIRONMENT)
    remove_leftovers(run_dir / "samples", "*.png", "*.gif")
    remove_leftovers(folder := run_dir / Path(CHECKPOINT).parent, SAVED, LAST, BEST)
    if (checkpoint := newest(folder)) is not None:
        link(folder / LAST, checkpoint)


def _is_at(owned: _Owned, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(owned.directory), os.stat(folder))
    except OSError:
        return False


def _lock(folder: Path) -> int:
    """The open lock file, which names the folder's owner."""
    path = folder / LOCK
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise NotWritten(f"run_dir={relative(folder)}: cannot be written to ({error.strerror})") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD_BY_ANOTHER:
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise NotWritten(
                    f"run_dir={relative(folder)}: {holder} is writing to it; wait for it, stop it, or choose another "
                    "hydra.run.dir"
                ) from error
            print(f"{relative(folder)}: not protected against a second process ({error.strerror})", file=sys.stderr)
        if _is_file_at(file, path):  # otherwise its last owner has just removed it
            break
        os.close(file)
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def _is_file_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _release(owned: _Owned) -> None:
    with contextlib.suppress(OSError):
        if _is_file_at(owned.lock, owned.folder / LOCK):
            (owned.folder / LOCK).unlink()  # while it is locked: a waiting process checks that the file still exists
    os.close(owned.lock)
    os.close(owned.directory)
