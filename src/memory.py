"""What the C library does with memory that a program has freed."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets the process use freed memory again, where glibc would hand it back and the kernel clear new pages.

    On a CPU every step allocates and frees the same large tensors. Python's small objects are not concerned.
    Measured by `python -m benchmarks.memory`. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
