"""whip inside mitmproxy: an addon that takes over how mitmproxy opens connections.

seam      the one call in mitmproxy that opens TCP connections, replaced by a dial
dial      a connection opened through an agent, by name (`whip_core.Broker`)
route     what becomes of a host: through whip, straight out, or refused
fallback  letting hosts that are not whip's out directly; never for a dial that failed
caller    the proxy's client, on whose behalf a dial is made
answer    what that client is told when a dial fails: a status, and why
door      the way into the proxy itself: its password and its TLS
trouble   why the addon cannot work; while there is some, nothing is let through
part      what has hooks here; mitmproxy sees all parts as one addon
fault     what a person has put on an instance (`whip.fault`), to see how its clients take it

`addon.py` is the script that mitmproxy loads (`whip addon-path` prints where it is).
"""

__all__: list[str] = []
