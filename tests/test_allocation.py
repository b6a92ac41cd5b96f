"""Freed memory serves the next step: the kernel need not hand out, and clear, the same pages again."""

import subprocess
import sys

import pytest

from jaxdistill import allocation

# A block of 96 MiB, more than glibc's limits for large ones, written ten times by another thread.
FAULTS = """
import ctypes, resource, sys, threading
from jaxdistill import allocation

asked = sys.argv[1] == "yes" and allocation.reuse_freed_memory({})
libc, size = ctypes.CDLL(None), 96 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def write():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(block)

def repeat():
    write()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(9):
        write()
    print(asked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=repeat)
thread.start()
thread.join()
"""


def faults(wanted):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, wanted], capture_output=True, text=True, check=True
    )
    asked, count = done.stdout.split()
    return asked, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_memory_once_written_is_there():
    (asked, kept), (_, otherwise) = faults("yes"), faults("no")
    if asked == "False":
        pytest.skip("not glibc")
    assert kept < 40 < otherwise  # 24,576 pages of 4 KiB each time, or 48 of 2 MiB


@pytest.mark.parametrize(
    "name, value",
    [
        ("MALLOC_ARENA_MAX", "4"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=0"),
    ],
)
def test_who_says_how_to_allocate_is_heard(name, value):
    assert allocation._says_how({name: value})
    assert not allocation.reuse_freed_memory({name: value})


def test_huge_pages_go_with_it():
    assert not allocation._says_how({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
