"""The C library's allocator, whose heap must not grow with the days.

ONNX Runtime takes blocks of megabytes and gives them back now and then. Small objects settle where such a block was,
the next block fits there no more, and the heap grows by it, though most of it is free.
"""

import ctypes
from typing import Final

#: Blocks of as many bytes get pages of their own, which are the system's again as soon as they are given back. Less
#: would cost page faults for each request, and by default glibc raises it to 32 MiB with the blocks it meets.
_APART_BYTES: Final = 1 << 20
#: Free bytes at the heap's end that are kept. Setting the other ends glibc's own adjustment of this one.
_SPARE_BYTES: Final = 8 << 20
#: Names of mallopt(3), which are macros.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_large_blocks_apart() -> None:
    """To be called before anything large is allocated. Other C libraries than glibc stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _APART_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)


def give_back() -> None:
    """Give freed memory back to the system: a session's is in many pieces, which the allocator keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
