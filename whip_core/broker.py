"""The broker: keeps agents, and opens streams to them for whoever asks in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from whip_core import settings
from whip_core.activity import Activity
from whip_core.admission import Admission
from whip_core.agents import (
    AgentView,
    Destination,
    RequestFinished,
)
from whip_core.audit import AuditLog
from whip_core.authorization import CertificateCoversName, PolicyRules
from whip_core.caller import Caller
from whip_core.certificates import check_relays
from whip_core.control_server import ControlServer
from whip_core.credentials import Credentials
from whip_core.dial import Asked, Tell
from whip_core.dial_address import DialAddress
from whip_core.dial_desk import DialDesk
from whip_core.dial_socket import DialAccess, DialSocket
from whip_core.dialer import Dialer
from whip_core.dials import Dials
from whip_core.errors import (
    RegistrationError,
    SettingsError,
)
from whip_core.fabrics import ShippedFabrics
from whip_core.metrics import BrokerMetrics
from whip_core.names import Target, host_port, is_within, normalize
from whip_core.neighbours import Neighbours
from whip_core.outliers import OutlierEjection
from whip_core.picker_choice import make_picker
from whip_core.plugin_settings import PluginSettings
from whip_core.plugins import Plugins
from whip_core.policy import Policy
from whip_core.policy_file import parse_policy
from whip_core.registrar import Registrar
from whip_core.relaying import Relaying
from whip_core.reverse_listener import ReverseListener
from whip_core.settings import Role
from whip_core.stream import Stream
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)


class Broker(Dials):
    """An async context manager: while it is open, agents register and can be dialled.

    At its end streams that still run are cut: their readers are told so.

        async with Broker(BrokerSettings(external_host="broker.example", tls=files)) as broker:
            reader, writer = await broker.open_connection("instance1.testdom", 80)

    `plugins` are objects with hooks (`hookspecs`); the built-in picker, certificate rule
    and metrics stand behind them. Raises `SettingsError` for one that cannot be used, or
    for a setting that no plugin has. Entering raises `SettingsError` if a file or a port
    cannot be used.
    """

    def __init__(
        self,
        settings: settings.BrokerSettings,
        *,
        plugins: Sequence[object] = (),
        plugin_settings: PluginSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.broker_id = secrets.token_hex(8)
        self.metrics = BrokerMetrics()
        rules: list[object] = [CertificateCoversName()]
        self._policy = _read_policy(settings.policy) if settings.policy is not None else None
        if self._policy is not None:
            rules.append(PolicyRules(self._policy))
        outliers = (
            OutlierEjection(lambda agent, seconds: self._registrar.eject(agent, seconds))
            if settings.outlier_ejection
            else None
        )
        self._desk = DialDesk(
            lambda: self._dialer,
            lambda: self.agents,
            self._view,
            self._known_domains,
            lambda: (self.broker_id, self.goes_by_caller),
            self._stopping,
        )
        self._audit_log = AuditLog(settings.audit_log) if settings.audit_log else None
        self.activity = Activity()
        self.plugins = Plugins(
            [
                make_picker(settings.picker),
                *rules,
                *([outliers] if outliers else []),
                ShippedFabrics(),
                *([self._desk] if settings.dial_listen else []),
                self.metrics,
                self.activity,
                *([self._audit_log] if self._audit_log else []),
                *plugins,
            ],
            plugin_settings,
        )
        if settings.fabric is not None:
            self.plugins.check_fabric(settings.fabric)
        self._domains = tuple(normalize(domain) for domain in settings.domains)
        admission = Admission(settings.limits)
        self._registrar = Registrar(
            settings,
            self.broker_id,
            self.plugins,
            admission,
            lambda: self._reverse_address,
            self._stopping,
        )
        self._registry = self._registrar.registry
        self._dialer = Dialer(self._registry, self.plugins, settings.dial_timeout, admission)
        self._registrar.on_joined = self._dialer.agents_changed
        self._registrar.on_draining = self._desk.agent_changed
        if outliers is not None:
            self._registrar.on_readmitted = outliers.readmitted
        self._dial_socket: DialSocket | None = None
        self._credentials: Credentials | None = None
        self._tasks = TaskSet()
        self._stack = contextlib.AsyncExitStack()
        self.metrics.watch_parked(self._registrar.parked)
        self.metrics.watch_ejected(self._registrar.ejected)

    async def __aenter__(self) -> Broker:
        self.plugins.start(self.metrics.registry)
        if self._policy is not None and not self._policy.callers and not self._policy.dry_run:
            logger.warning(
                "policy %s has no [[caller]], so nobody may reach anything: write one, "
                'with who = "*" if everybody may',
                self.settings.policy,
            )
        files = self.settings.tls
        if files is not None:
            self._credentials = Credentials(files, Role.BROKER, self.metrics.certificate_expires)
            self._registrar.credentials = self._credentials
        credentials = self._credentials
        fabric = self.settings.fabric
        neighbours = self._make_neighbours(fabric) if fabric is not None else None
        async with contextlib.AsyncExitStack() as stack:
            if self._audit_log is not None:
                self._audit_log.start()
                stack.callback(self._audit_log.close)
            self._reverse = await stack.enter_async_context(
                ReverseListener(
                    self._registrar.welcome,
                    self.settings.listen_hosts,
                    self.settings.tcp_listen_port,
                    credentials.server_context if credentials else None,
                    handshake_timeout=self.settings.handshake_timeout,
                    preamble_timeout=self.settings.preamble_timeout,
                    limits=self.settings.limits,
                    on_refused=self._registrar.connection_refused,
                )
            )
            # Before any agent can come: others are told of each.
            if neighbours is not None:
                await stack.enter_async_context(neighbours)
                self._dialer.elsewhere = self._registrar.neighbours = neighbours
            self._control = await stack.enter_async_context(
                ControlServer(
                    self._registrar,
                    self.settings.listen_hosts,
                    self.settings.grpc_listen_port,
                    credentials.control_context if credentials else None,
                    register_timeout=self.settings.handshake_timeout,
                    limits=self.settings.limits,
                    on_refused=self._registrar.connection_refused,
                )
            )
            if self.settings.dial_listen:
                self._dial_socket = await stack.enter_async_context(self._make_dial_socket())
            self._stack = stack.pop_all()
        if credentials is not None:
            self._tasks.spawn(credentials.watch(self._end_unbelieved), "watch TLS files")
        self._dialer.closed = False
        logger.info(
            "broker %s: agents register at port %d and connect back to %s%s",
            self.broker_id,
            self.control_port,
            host_port(*self._reverse_address),
            "" if files else ", without TLS",
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._dialer.closed = True
        self._dialer.agents_changed()
        # First of all: agents open a new connection for each parked one that is closed.
        self._reverse.close()
        self._registrar.end_all(RegistrationError("the broker is shutting down", code="closing"))
        self._dialer.cut()
        await self._tasks.cancel_all()
        await self._stack.aclose()

    def _end_unbelieved(self) -> None:
        self._registrar.end_unbelieved()
        if self._dial_socket is not None and self._credentials is not None:
            self._dial_socket.end_unbelieved(self._credentials.problem)

    def reopen_logs(self) -> None:
        """Write the audit log to a new file of its name, as the old one was moved away."""
        if self._audit_log is not None:
            self._audit_log.reopen()

    def begin_drain(self) -> None:
        """Take no more agents or forwarded connections, and say so to the agents there are.

        Dials go on, for those who have still something to finish.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._desk.draining()
        self._registrar.say_draining("the broker is stopping")

    async def drain(self, timeout: float) -> None:
        """`begin_drain`, then wait until no stream is open, at most `timeout` seconds."""
        self.begin_drain()
        try:
            async with asyncio.timeout(timeout):
                await self._dialer.wait_quiet()
        except TimeoutError:
            logger.warning("some streams did not finish within %g s and are cut", timeout)

    @property
    def control_port(self) -> int:
        """Where agents register."""
        return self._control.port

    @property
    def reverse_port(self) -> int:
        """Where agents' reverse connections arrive."""
        return self._reverse.port

    @property
    def _reverse_address(self) -> tuple[str, int]:
        """What agents are told to connect back to."""
        return self.settings.external_host, self.settings.external_port or self.reverse_port

    @property
    def dial_addresses(self) -> list[DialAddress]:
        """Where other processes can dial through this broker."""
        return list(self._dial_socket.bound) if self._dial_socket is not None else []

    def _make_neighbours(self, fabric: settings.FabricSettings) -> Neighbours:
        return Neighbours(
            self.plugins.fabric(fabric),
            fabric.cluster,
            self.broker_id,
            lambda: self._reverse_address,
            self._registrar.sessions,
            self._registry,
            self._registrar.awaited,
            self.plugins,
            self.metrics.fabric_message_dropped,
            self._make_relaying() if self.settings.relay else None,
        )

    def _make_relaying(self) -> Relaying:
        settings = self.settings
        if settings.tls is not None:
            check_relays(settings.tls)
        return Relaying(
            self._dialer,
            lambda: self._reverse_address,
            self._credentials,
            allow_plaintext=settings.allow_plaintext,
            timeout=settings.dial_timeout,
        )

    def _make_dial_socket(self) -> DialSocket:
        settings = self.settings
        return DialSocket(
            self._desk,
            settings.dial_listen,
            self._credentials.server_context if self._credentials else None,
            DialAccess(settings.dial_allow, settings.dial_trust),
            handshake_timeout=settings.handshake_timeout,
            hello_timeout=settings.preamble_timeout,
            most_strangers=settings.limits.unauthenticated,
            on_refused=self._registrar.connection_refused,
        )

    @property
    def agents(self) -> list[AgentView]:
        """Every registered agent, as it is now."""
        return [session.view() for session in self._registry]

    def running_bytes(self) -> dict[str, tuple[int, int]]:
        """To and from each agent, by its full name, in the streams that are open."""
        return self._dialer.running_bytes()

    def kick(self, name: str) -> None:
        """End an agent's session: its name is free, streams that run may finish.

        The agent is told and may come back. Raises `UnknownName` if nobody has the name.
        """
        self._registrar.kick(name)

    def why_not_ready(self) -> str | None:
        """None while agents can register and be dialled."""
        if self._dialer.closed:
            return "the broker does not listen"
        return "draining" if self._stopping.is_set() else None

    def mitmproxy_addons(self) -> list[tuple[str, object]]:
        """What plugins bring for a mitmproxy that this broker is in, with the plugins' names.

        Raises `SettingsError` if one of them fails at it.
        """
        return self.plugins.mitmproxy_addons()

    def request_finished(self, request: RequestFinished) -> None:
        """Told by the proxy that this broker is in, for the plugins."""
        self.plugins.request_finished(request)

    def routes(self, host: str) -> bool:
        """Whether `host` belongs to whip: it, or its domain, is or was registered or is listed.

        Such a name must never be looked for anywhere else. Never raises.
        """
        try:
            name = normalize(host)
        except ValueError:
            return False
        return is_within(name, self._domains) or self._registry.is_ours(name)

    def resolves(self, host: str, port: int, caller: Caller) -> bool:
        """Whether a plugin resolves `host` to another target, so that it has to be dialled here.

        For who has somewhere else to look for names that `routes` does not know. Raises
        `DialError` if a plugin fails.
        """
        return self._dialer.resolves(host, port, caller)

    async def _dial(
        self, host: str, port: int | str, caller: Caller, wait: float, timeout: float | None
    ) -> Stream:
        return await self._dialer.dial(host, port, caller=caller, wait=wait, timeout=timeout)

    def _begin_dial(self, target: Target, caller: Caller, wait: float, tell: Tell) -> Asked | None:
        return self._dialer.begin(target, caller, wait, tell)

    def _view(self, name: str) -> AgentView | None:
        session = self._registry.get(name)
        return session.view() if session is not None else None

    def _known_domains(self) -> list[str]:
        return [*self._domains, *self._registry.domains]

    @property
    def goes_by_caller(self) -> bool:
        """Whether it can depend on the caller where a dial leads; else `destination` is None."""
        return self.plugins.go_by_caller

    def destination(self, host: str, port: int, caller: Caller) -> Destination | None:
        """Where a dial for `caller` has to lead; None if every caller's may lead anywhere.

        For who has a stream already and wants to serve another caller on it: it will do if
        the destination admits that of `writer.get_extra_info("whip")`. Opens nothing.
        Raises `DialError` if a plugin fails, or nobody has the name any more.
        """
        return self._dialer.destination(host, port, caller)

    def response_seen(self, agent: AgentView, status: int) -> None:
        """Tell the plugins of an HTTP response that came from `agent`, seen by a proxy here."""
        self.plugins.response_seen(agent, status)


def _read_policy(path: Path) -> Policy:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"policy {path}: cannot read it: {error}") from error
    return parse_policy(text, str(path))
