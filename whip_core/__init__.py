"""whip_core: reach private service instances by name.

agent               the side-car beside an instance; it dials out (package `client_agent`)
broker              keeps the agents, opens streams to them
control stream      gRPC, agent to broker, as long as the agent lives
reverse connection  TCP, opened by the agent for the broker; carries one stream at a time
parked              said of a reverse connection that is open and idle
dial                from a name to a stream (an `asyncio.Transport`): resolve, pick, open
"""

import os
import typing

# gRPC looks here whether to write each port scan to stderr, across mitmproxy's screen too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if typing.TYPE_CHECKING:
    from whip_core.public import *
else:
    from whip_core import errors, when_asked

    __all__ = ["Broker", "BrokerSettings", "Caller", "HttpRequest", "TLSFiles", "connect"]
    __all__ += ["hookimpl", *errors.__all__]
    __getattr__ = when_asked.find(__name__, **dict.fromkeys(__all__, ".public"), testing=".testing")
