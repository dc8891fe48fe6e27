"""The project's version."""

import re
from importlib import metadata

from lightning_diffusion.system.checkout import CHECKOUT

NAME = "lightning-diffusion"


def version() -> str:
    """Name and version: of the source tree where the code lies in one, else of the installed package."""
    if CHECKOUT is not None:
        project = (CHECKOUT / "pyproject.toml").read_text()
        if found := re.search(r'^version = "(.+)"$', project, re.MULTILINE):
            return f"{NAME} {found[1]}"
    return f"{NAME} {metadata.version(NAME)}"
