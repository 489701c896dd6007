"""A mitmproxy in this process with whip's addon, which records flows; for tests."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mitmproxy.http import HTTPFlow
from mitmproxy.options import Options
from mitmproxy.tools.dump import DumpMaster

from whip_addon.lifecycle import WhipAddon
from whip_core import Broker
from whip_core.tasks import TaskSet


class Recorder:
    """An addon that keeps the flows that have ended, and tells when there is a new one."""

    name = "whip.recorder"

    def __init__(self) -> None:
        self.flows: list[HTTPFlow] = []
        self.is_running = asyncio.Event()
        self._news = asyncio.Event()

    def running(self) -> None:
        self.is_running.set()

    def response(self, flow: HTTPFlow) -> None:
        self._ended(flow)

    def error(self, flow: HTTPFlow) -> None:
        self._ended(flow)

    def _ended(self, flow: HTTPFlow) -> None:
        self.flows.append(flow)
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[list[HTTPFlow]], bool]) -> None:
        while not condition(self.flows):
            await self._news.wait()


@dataclass
class RecordingProxy:
    """A mitmproxy that runs; `url` is what HTTP clients call the proxy."""

    url: str
    recorder: Recorder = field(repr=False)
    master: DumpMaster = field(repr=False)


@asynccontextmanager
async def recording(
    broker: Broker, *addons: object, mode: Sequence[str] = ("regular",), **options: Any
) -> AsyncIterator[RecordingProxy]:
    """mitmdump in front of `broker`, which runs already, and stays. `options` are mitmproxy's."""
    with tempfile.TemporaryDirectory(prefix="whip-mitm-") as confdir:
        master = DumpMaster(
            Options(confdir=confdir, listen_host="127.0.0.1", listen_port=0, mode=list(mode)),
            with_termlog=False,
            with_dumper=False,
        )
        recorder = Recorder()
        master.addons.add(*addons, WhipAddon(lambda *_: _as_it_is(broker)), recorder)
        defaults = {
            "whip_external_tcp_address": "localhost",
            "whip_tls": False,
            "whip_metrics_listen": "",
        }
        master.options.update_defer(**defaults | options)
        tasks = TaskSet()
        running = tasks.spawn(master.run(), "mitmproxy")
        up = tasks.spawn(recorder.is_running.wait(), "mitmproxy is up")
        try:
            await asyncio.wait([up, running], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
                raise RuntimeError("mitmproxy did not start")
            [(host, port, *_)] = master.addons.get("proxyserver").listen_addrs()
            yield RecordingProxy(f"http://{host}:{port}", recorder, master)
        finally:
            up.cancel()
            master.shutdown()
            await asyncio.wait([running, up])
            # mitmproxy leaves that to the end of its process.
            servers = master.addons.get("proxyserver").servers
            await asyncio.gather(*(server.stop() for server in servers))


def _as_it_is(broker: Broker) -> AbstractAsyncContextManager[Broker]:
    @asynccontextmanager
    async def entered() -> AsyncIterator[Broker]:
        yield broker

    return entered()
