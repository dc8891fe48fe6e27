"""The figures of the documentation, each by one command: python -m benchmarks.NAME. README.md tells which."""
