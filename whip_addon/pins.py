"""Names whose next connections go to one instance, because a person said so."""

from __future__ import annotations

from whip_core.names import normalize


class Pins:
    def __init__(self) -> None:
        self._instances: dict[str, str] = {}

    def pin(self, name: str, instance: str) -> None:
        """Let dials of `name` be dials of `instance`, until `unpin`."""
        self._instances[normalize(name)] = instance

    def unpin(self, name: str) -> bool:
        """Whether it was pinned."""
        return self._instances.pop(normalize(name), None) is not None

    def dialled_as(self, host: str) -> str:
        """What to dial for `host`."""
        if not self._instances:
            return host
        try:
            return self._instances.get(normalize(host), host)
        except ValueError:
            return host
