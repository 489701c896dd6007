"""client_agent: the side-car that runs beside a service instance and dials out for it.

endpoint   what the agent is told to connect to; a name may stand for many brokers
address    one place where a broker listens, found behind an endpoint
exposure   the ports that the agent offers, and the local service behind each
session    one registration at one broker, over one control stream
worker     keeps a session to one address, for ever, with back-off
"""

from client_agent.agent import Agent
from client_agent.endpoints import Endpoint
from client_agent.exposure import parse_exposure
from client_agent.settings import AgentSettings

__all__ = ["Agent", "AgentSettings", "Endpoint", "parse_exposure"]
