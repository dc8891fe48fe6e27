"""The project's version."""

import re
from importlib import metadata
from pathlib import Path

NAME = "lightning-diffusion"
PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def version() -> str:
    """Name and version: of the source tree where the code lies in one, else of the installed package."""
    if PROJECT.is_file() and (found := re.search(r'^version = "(.+)"$', PROJECT.read_text(), re.MULTILINE)):
        return f"{NAME} {found[1]}"
    return f"{NAME} {metadata.version(NAME)}"
