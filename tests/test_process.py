"""A process before it computes: memory that was freed stays at hand."""

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from jaxdistill import process

kept = process.keep_freed_memory() if sys.argv[1] == "kept" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def step(size=300 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(memory, 1, size)
    libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(kept, step(), step())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_what_a_step_frees_the_next_one_finds_without_page_faults():
    """Each fault is a page of 4 KiB that the system clears anew: 76,800 of them for 300 MiB."""
    found = {}
    for mode in ("kept", "as it is"):
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        found[mode] = done.stdout.split()
    assert found["kept"][0] == "True" and int(found["kept"][2]) < 1000
    assert int(found["as it is"][2]) > 50_000
