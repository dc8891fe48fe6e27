"""The figures of the documentation, each by one command: python -m benchmarks.NAME. README.md tells which."""

import src  # noqa: F401 - this checkout's package, wherever else one is installed
