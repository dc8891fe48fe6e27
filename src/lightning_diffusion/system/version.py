"""The project's version."""

import re
from importlib import metadata

from lightning_diffusion.system.checkout import CHECKOUT

NAME = "lightning-diffusion"


def version() -> str:
    """Name and version: from the source tree if the code runs from one, else from the installed package."""
    if CHECKOUT is not None:
        project = (CHECKOUT / "pyproject.toml").read_text()
        if found := re.search(r'^version = "(.+)"$', project, re.MULTILINE):
            return f"{NAME} {found[1]}"
    return f"{NAME} {metadata.version(NAME)}"
