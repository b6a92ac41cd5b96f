"""How a process of ours is set up before it computes: compiled programs are kept on disk, and freed memory at hand.

Called by the command line and by benchmarks. A library does not do this to its user's process.
"""

from __future__ import annotations

import ctypes
import os
import sys

import jax

from jaxdistill.data.files import cache_directory


def set_up() -> None:
    """Everything below; to be called once several processes, if there are, have joined."""
    use_compilation_cache()
    keep_freed_memory()


def use_compilation_cache() -> None:
    """A second start of the same recipe need not compile again; JAX_COMPILATION_CACHE_DIR chooses another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))


def keep_freed_memory() -> bool:
    """On a Linux CPU: has glibc keep what XLA frees, and says whether it does.

    XLA takes each step's temporaries from malloc and frees them after it. glibc gives blocks of that size back to the
    system, which then zeroes every page again at its next use: a quarter of a small model's step. One arena, since no
    other than the first can hold large blocks; no mmap, no trimming. What a process holds is then its peak.
    """
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2  # malloc.h
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1), (top_pad, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)
