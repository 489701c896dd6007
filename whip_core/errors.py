"""What can go wrong, on top of the built-in errors that asyncio's callers already catch.

Every error says whose fault it is, names the target and says what is known. All dial
errors are `OSError`, so code that knows only asyncio (mitmproxy among it) handles them.
An `errno` is the class's, in front of the built-in's own, so that `str()` is the text alone.
"""

from __future__ import annotations

from errno import EACCES, EADDRINUSE, ECONNABORTED, ECONNREFUSED, ECONNRESET, EPROTO, ETIMEDOUT
from typing import Literal

__all__ = [
    "AddressInUse",
    "AgentGone",
    "BrokerClosed",
    "Busy",
    "DialError",
    "DialTimeout",
    "LocalProtocolError",
    "NotAuthorized",
    "PluginError",
    "PortNotExposed",
    "RegistrationError",
    "RemoteProtocolError",
    "ServiceRefused",
    "SettingsError",
    "StreamCut",
    "StreamReset",
    "UnknownName",
    "WhipError",
]


class WhipError(Exception):
    """Anything that whip itself raises."""


class SettingsError(WhipError, ValueError):
    """A setting is wrong or contradicts another; the text says what to do."""


class AddressInUse(SettingsError, OSError):
    """Somebody else listens there already; the text says what to do."""

    errno = EADDRINUSE


class RemoteProtocolError(WhipError, ConnectionError):
    """The peer broke the protocol. The connection it came on is of no more use."""

    errno = EPROTO


class LocalProtocolError(WhipError, RuntimeError):
    """Our own side asked for something that the connection's state does not allow."""


class RegistrationError(WhipError):
    """An agent may not register; `code` is the reason's short, bounded name."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class DialError(WhipError, OSError):
    """A dial failed. `reason` is its short name, for metrics and logs."""

    reason = "other"
    http_status = 502
    """What a proxy answers its client when a dial fails so."""
    dial: object = None
    """The `whip_core.agents.DialFinished` of the dial, once a broker has begun one."""


class UnknownName(DialError, ConnectionRefusedError):
    """No agent is registered under the name (the caller's fault, or not yet there)."""

    errno = ECONNREFUSED
    reason = "unknown-name"


class PortNotExposed(DialError, ConnectionRefusedError):
    """Agents have the name, none exposes the port."""

    errno = ECONNREFUSED
    reason = "port-not-exposed"


class ServiceRefused(DialError, ConnectionRefusedError):
    """The agent answered, but could or would not reach its service."""

    errno = ECONNREFUSED
    reason = "service-refused"


class AgentGone(DialError, ConnectionResetError):
    """The agent vanished, or could not open its reverse connection."""

    errno = ECONNRESET
    reason = "agent-gone"


class DialTimeout(DialError, TimeoutError):
    """The dial took longer than it was allowed to."""

    errno = ETIMEDOUT
    reason = "timeout"
    http_status = 504


class NotAuthorized(DialError, PermissionError):
    """A plugin vetoed the dial; the text is its reason."""

    errno = EACCES
    reason = "not-authorized"
    http_status = 403


class PluginError(DialError):
    """A plugin that had to decide raised, or gave a wrong answer; the text names it."""

    reason = "plugin"


BusyReason = Literal["busy", "dial-rate", "pending-dials", "streams", "streams-per-agent"]
"""Which limit: all there are, as they are labels of metrics."""


class Busy(DialError, ConnectionRefusedError):
    """A limit of the broker is reached (`limits`); `reason` is which."""

    errno = ECONNREFUSED
    reason: BusyReason = "busy"
    http_status = 503

    def __init__(self, message: str, *, reason: BusyReason = "busy") -> None:
        super().__init__(message)
        self.reason = reason


class BrokerClosed(DialError, ConnectionAbortedError):
    """The broker is shutting down, or was never started."""

    errno = ECONNABORTED
    reason = "broker-closed"
    http_status = 503


class StreamReset(WhipError, ConnectionResetError):
    """The other end broke the stream; what came before is complete, what follows is lost."""

    errno = ECONNRESET


class StreamCut(WhipError, ConnectionResetError):
    """The connection went away without an end of stream: bytes may be missing."""

    errno = ECONNRESET
