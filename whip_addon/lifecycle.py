"""The addon's life inside mitmproxy: its options, its start, its end, and its trouble.

Whatever keeps it from working (a bad option, a port in use, a mitmproxy without the seam)
is trouble: one line in mitmproxy's log, which ends mitmproxy while it starts. And while
there is trouble, nothing gets through, as a connection that whip does not route could take
a private name out to the public.
"""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Protocol

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader
from mitmproxy.exceptions import OptionsError
from mitmproxy.proxy.mode_specs import ProxyMode, UpstreamMode

from whip_addon import options, seam
from whip_addon.ambiguous import Ambiguous
from whip_addon.answers import Answers
from whip_addon.broken import BrokenStreams
from whip_addon.callers import Callers
from whip_addon.counting import NO_STATUS, Counting, Counts
from whip_addon.dialing import Dialer, Dials, Rules
from whip_addon.door import Door
from whip_addon.draining import Draining, on_signal
from whip_addon.ending import end_clients
from whip_addon.faulty import FaultyAnswers
from whip_addon.forwarded import Forwarded
from whip_addon.gate import Gate
from whip_addon.guard import Guard
from whip_addon.internal import is_internal
from whip_addon.labels import Labels
from whip_addon.loopback import Loopback
from whip_addon.parts import Parts
from whip_addon.passthrough import Passthrough
from whip_addon.pins import Pins
from whip_addon.plugin_addons import PluginAddons
from whip_addon.prompt import Agents, Prompt
from whip_addon.responses import Responses, Told
from whip_addon.reuse import Reuse
from whip_addon.routing import Route, route
from whip_addon.settings import BY_NAME, PASSWORD_VARIABLE, WHILE_RUNNING, AddonSettings
from whip_addon.streaming import Streaming
from whip_addon.trailers import Trailers
from whip_addon.vouching import Vouching
from whip_core import Broker
from whip_core.agents import RequestFinished
from whip_core.errors import BrokerClosed, DialError, SettingsError, StreamCut, WhipError
from whip_core.forward import ForwardSpec
from whip_core.operating import Listening, operating
from whip_core.options import hangup_is_ours
from whip_core.plugin_sources import PluginOptions
from whip_core.remote import RemoteBroker
from whip_core.settings import BrokerSettings, RemoteSettings, is_loopback
from whip_core.status import Watched
from whip_core.stop_signals import StopSignals
from whip_core.tasks import TaskSet
from whip_core.web import WebServer

logger = logging.getLogger(__name__)

SHUTTING_DOWN = "whip is shutting down"


class RunningBroker(Dials, Agents, Counts, Told, Watched, Protocol):
    """What the addon needs of a broker: `whip_core.Broker`, a `RemoteBroker`, a test's own."""

    def mitmproxy_addons(self) -> Sequence[tuple[str, object]]: ...
    def begin_drain(self) -> None: ...
    def reopen_logs(self) -> None: ...
    async def drain(self, timeout: float) -> None: ...
    def forwarding(
        self, spec: ForwardSpec, *, wait: float
    ) -> AbstractAsyncContextManager[object]: ...


BrokerFactory = Callable[
    [BrokerSettings | RemoteSettings, PluginOptions],
    AbstractAsyncContextManager[RunningBroker],
]
"""Makes the broker from its settings and its plugins'; entering it starts it."""


def broker_of(
    settings: BrokerSettings | RemoteSettings, plugins: PluginOptions
) -> Broker | RemoteBroker:
    """The real one, here or elsewhere, with the plugins loaded. Raises `SettingsError`."""
    if isinstance(settings, RemoteSettings):
        return RemoteBroker(settings)
    return Broker(settings, plugins=plugins.load(), plugin_settings=plugins.read_settings())


class _Set:
    """Can be awaited until `event` is set, and can be left alone, unlike a coroutine."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._event.wait().__await__()


class WhipAddon:
    """Lets mitmproxy reach whip's names. One in a process: a second one does nothing."""

    _ending: ClassVar[asyncio.Task[Any] | None] = None
    """The life of an addon that was unloaded; its ports are free when that has ended."""

    def __init__(self, broker_factory: BrokerFactory = broker_of) -> None:
        self._broker_factory = broker_factory
        self._settings: AddonSettings | None = None
        self._broker: RunningBroker | None = None
        self._status_page: WebServer | None = None
        self._trouble: str | None = None
        # mitmproxy takes no two addons of one name, and says so with a traceback.
        self._is_second = seam.is_taken()
        self.name = "whip (second)" if self._is_second else "whip"
        self._is_running = False
        self._tasks = TaskSet()
        self._life: asyncio.Task[Any] | None = None
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._answers = Answers()
        self._trailers = Trailers()
        callers = self._callers = Callers(self._request_id_header)
        self._broken = BrokenStreams()
        labels, pins = Labels(), Pins()
        self._reuse = Reuse(lambda: self._broker, callers, pins)
        prompt = Prompt(lambda: self._broker, pins)
        self._dialer = Dialer(
            *(self._ready, self._rules, callers, self._broken, self._reuse),
            *(labels, pins, prompt.faults),
            status_page=lambda: self._status_page,
        )
        self._draining = Draining(self._dialer.agent_leaves)
        self._door = Door(callers.prove_names)
        self._brought = PluginAddons()
        parts = Parts(
            Guard(lambda: self._trouble, self._way, self._dialer.has_dialled),
            self._door,
            Ambiguous(self._routes, self._domains),
            callers,
            self._reuse,
            self._answers,
            Passthrough(self._passthrough, self._passed_through),
            Streaming(),
            Responses(lambda: self._broker, self._reuse.agent_of),
            Forwarded(self._routes),
            self._broken,
            self._draining,
            labels,
            Vouching(labels.facts_of, self._dialer.has_dialled),
            FaultyAnswers(prompt.faults, labels),
            Counting(self._counts),
        )
        self.addons: list[object] = [Loopback(), Gate(), parts, prompt, self._brought]
        if self._is_second:
            self.addons.clear()

    # Start and end

    def load(self, loader: Loader) -> None:
        if self._is_second:
            logger.error("whip: the addon is loaded twice: load it once")
            return
        try:
            options.declare(loader)
            seam.install(self._dialer.dial)
            self._answers.install()
            self._reuse.install()
            self._trailers.install()
            options.take_deferred(loader.master.options)
        except WhipError as error:
            self._fail(str(error))

    def configure(self, updated: set[str]) -> None:
        changed = updated & BY_NAME.keys()
        if not changed or self._is_second:
            return
        try:
            settings = options.settings_from(ctx.options)
            self._check_changes(settings)
            self._door.install(settings.door)
        except SettingsError as error:
            if self._is_running:
                raise OptionsError(str(error)) from error
            return  # The options may come one by one: `running` says what is wrong in the end.
        self._settings = settings

    # Not a coroutine function, as mitmproxy calls it from where it cannot wait when it
    # loads a script that has changed.
    def running(self) -> Awaitable[None] | None:
        self._is_running = True
        if self._is_second or self._trouble:
            return None
        try:
            options.check_unknown(ctx.options)
            self._settings = options.settings_from(ctx.options)
            self._door.install(self._settings.door)
        except SettingsError as error:
            self._fail(str(error))
            return None
        _warn_if_open()
        if self._settings.door.login is None:
            _warn_of_unused_password()
        stop = StopSignals(self._stop_slowly, ctx.master.shutdown)
        on_signal(signal.SIGTERM, stop.told)
        if hangup_is_ours():
            on_signal(signal.SIGHUP, self._told_to_reopen)
        self._life = self._tasks.spawn(self._live(self._settings, WhipAddon._ending), "whip")
        return _Set(self._started)

    def _stop_slowly(self) -> None:
        if self._broker is None or self._settings is None:
            ctx.master.shutdown()
            return
        timeout = self._settings.broker.drain_timeout
        logger.info("stopping: requests have %g s to finish", timeout)
        self._broker.begin_drain()
        self._tasks.spawn(self._drain(self._broker, timeout), "drain")

    def _told_to_reopen(self) -> None:
        if self._broker is not None:
            self._broker.reopen_logs()

    async def _drain(self, broker: RunningBroker, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            await self._draining.drain(timeout)
            await broker.drain(max(0.0, deadline - loop.time()))
        finally:
            ctx.master.shutdown()

    def done(self) -> Awaitable[None] | None:
        if self._is_second:
            return None
        self._trouble = self._trouble or SHUTTING_DOWN
        seam.retire(self._dialer.dial)
        self._stop.set()
        if self._life is None:
            self._leave()
            return None
        WhipAddon._ending = self._life
        return self._life

    async def _live(self, settings: AddonSettings, predecessor: asyncio.Task[Any] | None) -> None:
        """The broker's whole life, in one task, which lasts as long as the addon."""
        try:
            if predecessor is not None and not predecessor.done():
                await asyncio.wait([predecessor])
            async with self._broker_factory(settings.broker, settings.plugins) as broker:
                await self._serve(broker, settings)
        except (WhipError, OSError) as error:
            self._fail(str(error))
        except Exception as error:
            logger.exception("whip: the broker failed")
            self._trouble = f"the broker failed: {error}"
        finally:
            self._broker = None
            self._started.set()
        await self._stop.wait()  # until then nothing gets through, also after a failure
        if ctx.master.should_exit.is_set():
            await end_clients()
        self._leave()

    async def _serve(self, broker: RunningBroker, settings: AddonSettings) -> None:
        async with AsyncExitStack() as stack:
            # Operators look at agents where they are registered.
            elsewhere = isinstance(settings.broker, RemoteSettings)
            listening = Listening(
                settings.metrics_listen,
                settings.metrics_chosen,
                "" if elsewhere else settings.control_socket,
            )
            page = await stack.enter_async_context(operating(broker, listening))
            for spec in settings.forwards:
                await stack.enter_async_context(broker.forwarding(spec, wait=settings.wait))
            await self._brought.add(broker.mitmproxy_addons())
            self._broker, self._status_page = broker, page
            self._started.set()
            await self._stop.wait()
            self._broker = None
            if ctx.master.should_exit.is_set():
                self._broken.break_all(StreamCut("the proxy ends: the stream is incomplete"))

    def _leave(self) -> None:
        self._answers.uninstall()
        self._reuse.uninstall()
        self._trailers.uninstall()
        seam.uninstall(self._dialer.dial)

    def _fail(self, trouble: str) -> None:
        self._trouble = trouble
        _repeat_on_stderr()
        logger.error("whip: %s", trouble)

    def _check_changes(self, new: AddonSettings) -> None:
        """Raises `SettingsError` if a running broker would have to be another one."""
        old = self._settings
        if self._is_running and old is not None and old.needs_restart_for(new):
            raise SettingsError(
                f"only {', '.join(sorted(WHILE_RUNNING))} can be changed "
                "while the proxy runs: restart it"
            )

    # What the parts ask

    async def _ready(self) -> Dials:
        """The broker, once it runs. Raises `BrokerClosed`."""
        if not self._trouble:
            await self._started.wait()
        if self._broker is None:
            raise BrokerClosed(self._trouble or SHUTTING_DOWN)
        return self._broker

    def _rules(self) -> Rules:
        modes = [ProxyMode.parse(mode) for mode in ctx.options.mode]
        upstreams = {mode.address for mode in modes if isinstance(mode, UpstreamMode)}
        if self._settings is None:
            return Rules(upstreams=upstreams)
        return Rules(self._settings.fallback, self._settings.wait, upstreams)

    def _way(self, host: str, port: int) -> Route:
        rules = self._rules()
        try:
            return route(
                host,
                port,
                ours=self._routes,
                fallback=rules.fallback,
                upstreams=rules.upstreams,
                resolved=self._resolved,
            )
        except DialError:  # a plugin failed, which is logged; whose name it is, nobody knows
            return Route.REFUSE

    def _resolved(self, host: str, port: int) -> bool:
        caller = self._callers.current()
        return self._broker is not None and self._broker.resolves(host, port, caller)

    def _routes(self, host: str) -> bool:
        return self._broker is not None and (is_internal(host) or self._broker.routes(host))

    def _domains(self) -> set[str]:
        agents = self._broker.agents if self._broker is not None else ()
        return {agent.name.domain for agent in agents}

    def _request_id_header(self) -> str | None:
        return self._settings.request_id_header if self._settings is not None else None

    def _passthrough(self) -> Sequence[str]:
        return self._settings.passthrough if self._settings is not None else ()

    def _passed_through(self) -> None:
        counts = self._counts()
        if counts is not None:
            counts.request_finished(RequestFinished(NO_STATUS, "tcp", ""))

    def _counts(self) -> Counts | None:
        return self._broker


def _repeat_on_stderr() -> None:
    """mitmdump logs to stdout; when a start fails, its stderr says only that it failed, not why."""
    check = ctx.master.addons.get("errorcheck")
    if check is not None and not (sys.stdout is not None and sys.stdout.isatty()):
        check.repeat_errors_on_stderr = True


def _warn_of_unused_password() -> None:
    """The Go program asked for it as soon as there was one: its user had a default name."""
    if os.environ.get(PASSWORD_VARIABLE) and not ctx.options.proxyauth:
        logger.warning(
            "whip: %s is set, but the proxy asks for no password: give "
            "--proxy-auth-username (whip_proxy_auth_username) too",
            PASSWORD_VARIABLE,
        )


def _warn_if_open() -> None:
    """Somebody has asked for other interfaces than loopback, where whip's names are private."""
    if ctx.options.proxyauth or not ctx.options.server:
        return
    for mode in (ProxyMode.parse(spec) for spec in ctx.options.mode):
        host = mode.listen_host(ctx.options.listen_host)
        if mode.listen_port() is not None and not is_loopback(host):
            logger.warning(
                "whip: the proxy listens on %s without a password, so that others can reach "
                "your services: use --listen-host=127.0.0.1 or whip_proxy_auth_username",
                host or "all interfaces",
            )
