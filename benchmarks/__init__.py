"""Programs that produce the figures of the documentation: python -m benchmarks.NAME. README.md describes each."""

import src  # noqa: F401 - this checkout's package, even if another one is installed
