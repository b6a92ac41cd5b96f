"""How the C library hands out memory to this process.

On a CPU, XLA allocates each step's temporaries anew. glibc takes blocks that large from the system
and gives them back after the step, so the kernel clears every page again in every step: 30 % of the
time of fine-tuning a small BERT (docs/log.md, 2026-11-30). Called by __main__ alone, since a process
that only imports this package keeps its own ways."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping

# `mallopt`'s parameters (malloc.h)
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def reuse_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Keeps freed memory for the next step; whether this was possible: with glibc alone, before
    another thread allocates. An environment that says how to allocate is left to have its way."""
    if sys.platform != "linux" or _says_how(environment):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    # 1. Large blocks lie in the heap. 2. The heap's end is not given back. 3. There is one heap:
    # those of other threads hold 64 MiB at most, and larger blocks would come from the system again.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def _says_how(environment: Mapping[str, str]) -> bool:
    """Whether limits of glibc's or another allocator were asked for; huge pages go with ours."""
    return (
        any(name.startswith("MALLOC_") for name in environment)
        or "malloc" in environment.get("LD_PRELOAD", "")
        or re.search(r"glibc\.malloc\.(?!hugetlb)", environment.get("GLIBC_TUNABLES", ""))
        is not None
    )
