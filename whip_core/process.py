"""What a process of ours asks of the system, before it serves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""
MMAP_THRESHOLD = 1 << 20
"""Octets: above what one read of a socket brings (uvloop's are up to 256 KiB)."""
TRIM_THRESHOLD = 8 << 20
"""Octets of free heap that are kept: what some streams have on their way at once."""


def prepare() -> None:
    _allow_many_files()
    _keep_heap()


def new_loop() -> asyncio.AbstractEventLoop:
    """The faster event loop where it exists: these processes are all ours."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _allow_many_files() -> None:
    """Have the most open files that we may: a stream takes two, and 1024 is a usual limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems promise more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keep_heap() -> None:
    """Have glibc keep the memory that reads come in.

    By default each piece of 128 KiB and more is mapped anew, or the end of the heap is given
    back after it: 64 page faults for each read, up to half of the time of a big body.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
