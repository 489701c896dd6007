"""Fakes for tests, ours and those of programs that use whip.

- `memory_pair`: two joined asyncio transports without a socket under them. Whatever speaks
  over a transport can be tried on them: protocols of yours, `FramedConnection`s,
  `RawConnection`s.
- `MemoryTransport`: one end of such a pair; it can also be `cut` or `reset`.
- `loop_thread`, `tunnel`, `asgi`: what the fixtures of `whip_core.pytest_plugin` give.
- `Authority`: a CA in a folder, whose files a broker and agents can be started with.
"""

from whip_core.testing.ca import Authority
from whip_core.testing.memory import MemoryTransport, memory_pair

__all__ = ["Authority", "MemoryTransport", "memory_pair"]
