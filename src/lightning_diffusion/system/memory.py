"""The machine's memory, and the reuse of freed memory by the C library."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the process instead of returning it to the kernel, which would clear new pages.

    On a CPU every step allocates and frees the same large tensors. Small Python objects are not affected. Measured by
    `python -m benchmarks.memory`. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)


def memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(key: str, count: int, bytes_each: int) -> None:
    """Raises ValueError if the `count` images that `key` requests do not fit into the machine's memory."""
    available, needed = memory(), count * bytes_each
    if needed > available:
        raise ValueError(
            f"{key}={count}: these images need {needed / 2**30:,.0f} GiB, this machine has "
            f"{available / 2**30:,.0f}; choose fewer"
        )
