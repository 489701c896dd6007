"""What `whip_core` offers to programs, each from where it lives; imported when first asked for."""

from __future__ import annotations

from whip_core import errors
from whip_core.broker import Broker
from whip_core.caller import Caller, HttpRequest
from whip_core.errors import *
from whip_core.hookspecs import hookimpl
from whip_core.remote import connect
from whip_core.settings import BrokerSettings, TLSFiles

__all__ = ["Broker", "BrokerSettings", "Caller", "HttpRequest", "TLSFiles", "connect", "hookimpl"]
__all__ += errors.__all__
