"""whip_core: reach private service instances by name.

agent               the side-car beside an instance; it dials out (package `client_agent`)
broker              keeps the agents, opens streams to them
control stream      gRPC, agent to broker, as long as the agent lives
reverse connection  TCP, opened by the agent for the broker; carries one stream at a time
parked              said of a reverse connection that is open and idle
dial                from a name to a stream (an `asyncio.Transport`): resolve, pick, open
"""

import os

# gRPC's core, when it is first imported, looks here for whether to write a line to stderr
# for every port scan, across mitmproxy's screen too. What concerns us we log ourselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from whip_core.broker import Broker
from whip_core.caller import Caller, HttpRequest
from whip_core.hookspecs import hookimpl
from whip_core.remote import connect
from whip_core.settings import BrokerSettings, TLSFiles

__all__ = ["Broker", "BrokerSettings", "Caller", "HttpRequest", "TLSFiles", "connect", "hookimpl"]
