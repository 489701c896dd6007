"""whip_core: reach private service instances by name.

agent               the side-car beside an instance; it dials out (package `client_agent`)
broker              keeps the agents, opens streams to them
control stream      gRPC, agent to broker, as long as the agent lives
reverse connection  TCP, opened by the agent for the broker; carries one stream at a time
parked              said of a reverse connection that is open and idle
dial                from a name to a stream (an `asyncio.Transport`): resolve, pick, open
"""

from typing import TYPE_CHECKING, Any

from whip_core.caller import Caller, HttpRequest
from whip_core.hookspecs import hookimpl
from whip_core.settings import BrokerSettings, TLSFiles

if TYPE_CHECKING:
    from whip_core.broker import Broker
__all__ = ["Broker", "BrokerSettings", "Caller", "HttpRequest", "TLSFiles", "hookimpl"]


def __getattr__(name: str) -> Any:  # an agent shares this package, and needs no broker
    if name != "Broker":
        raise AttributeError(name)
    return __import__("whip_core.broker", fromlist=["_"]).Broker
