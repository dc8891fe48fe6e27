"""Whether this code runs from a checkout or was installed, which decides how its programs are started."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]  # only a wheel contains conf/


def as_typed(text: str) -> str:
    """The text with this installation's commands: `python -m src.train` in a checkout, otherwise `diffusion-train`."""
    return text if CHECKOUT is not None else re.sub(r"python -m src\.(\w+)", r"diffusion-\1", text)
