"""How much memory there is, and what the C library does with what a program has freed."""

import ctypes
import os
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


def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(key: str, count: int, bytes_each: int) -> None:
    """Raises ValueError where so many images, which `key` asks for, are more than the machine's memory holds."""
    there, wanted = memory(), count * bytes_each
    if wanted > there:
        raise ValueError(
            f"{key}={count}: these images take {wanted / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f}; "
            "choose fewer"
        )
