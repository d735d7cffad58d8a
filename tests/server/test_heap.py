"""Memory that is given back is the system's again."""

import platform
import subprocess
import sys

import pytest

# Large blocks that come and go, each after small objects have settled where the one before was. Prints the growth of
# the heap, in bytes, whether in use or free. Sizes fall, as glibc learns from each what it takes for large.
SCRIPT = """
import ctypes, sys
from cloze_server import heap

if sys.argv[1] == "apart":
    heap.keep_large_blocks_apart()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", *"123456789")]

library.mallinfo2.restype = Info
before = library.mallinfo2().arena
for size in range(24 << 20, 12 << 20, -(1 << 20)):
    blocks = [library.malloc(size) for _ in range(2)]
    for block in blocks:
        library.free(block)
    for _ in range(8):
        library.malloc(100 << 10)
print(library.mallinfo2().arena - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")
def test_large_blocks_leave_nothing_behind() -> None:
    """Where the allocator is left alone the heap keeps tens of megabytes; the test would not see a repair otherwise."""
    grown = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True).stdout)
        for how in ("apart", "alone")
    }
    small = 12 * 8 * (100 << 10)
    assert grown["apart"] < small + (4 << 20)
    assert grown["alone"] > small + (16 << 20)
