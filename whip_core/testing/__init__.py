"""Fakes for tests, ours and those of programs that use whip.

- `memory_pair`: two joined asyncio transports without a socket under them. Protocols of yours,
  `FramedConnection`s and `RawConnection`s can be tried on them; each `MemoryTransport` can also
  be `cut` or `reset`.
- `ScriptedAgent`, `ScriptedBroker`: one that does what the test says, before the real other.
- `Authority`: a CA in a folder, whose files a broker and agents can be started with.
- `loop_thread`, `tunnel`, `asgi`: what the fixtures of `whip_core.pytest_plugin` give.
"""

import typing

from whip_core.testing.ca import Authority
from whip_core.testing.memory import MemoryTransport, memory_pair

if typing.TYPE_CHECKING:
    from whip_core.testing.agent import ScriptedAgent
    from whip_core.testing.broker import ScriptedBroker
else:
    from whip_core.when_asked import find

    __getattr__ = find(__name__, ScriptedAgent=".agent", ScriptedBroker=".broker")

__all__ = ["Authority", "MemoryTransport", "ScriptedAgent", "ScriptedBroker", "memory_pair"]
