"""Whether this code lies in a checkout or was installed, and so how its programs are started."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]  # only a wheel carries conf/ inside


def as_typed(text: str) -> str:
    """Text with its commands as they are typed here: `python -m src.train` in a checkout, else `diffusion-train`."""
    return text if CHECKOUT is not None else re.sub(r"python -m src\.(\w+)", r"diffusion-\1", text)
