"""Downloads by torchvision, with progress."""

import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_diffusion.system.progress import Phase


@contextlib.contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Within this context, hide torchvision's progress bars and show the bytes downloaded into `root`."""
    with Phase(f"getting {name} into {root}", note=_Come(root)), contextlib.redirect_stderr(io.StringIO()):
        yield


class _Come:
    """The growth of a folder in bytes, updated every two seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before, self.text, self.looked = folder, _bytes(folder), "", 0.0

    def __call__(self) -> str:
        if time.monotonic() - self.looked > 2:
            self.text = f"{(_bytes(self.folder) - self.before) / 1e6:,.1f} MB"
            self.looked = time.monotonic()
        return self.text


def _bytes(folder: Path) -> int:
    with contextlib.suppress(OSError):  # a file may be renamed at this moment
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
