"""The agent: registered at every broker behind its endpoints, as long as it runs."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import aclosing

from client_agent.choice import choose
from client_agent.discovery import Discovery, Resolvers
from client_agent.endpoints import Address, Endpoint
from client_agent.plugins import AgentPlugins
from client_agent.reconcile import reconcile
from client_agent.settings import AgentSettings
from client_agent.worker import PATIENCE, Worker
from whip_core.credentials import Credentials
from whip_core.metrics import AgentMetrics
from whip_core.plugin_settings import PluginSettings
from whip_core.settings import Role
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)


class Agent:
    """Exposes the settings' ports under the settings' name.

    `run` until cancelled, or until `stop` has let the streams finish. `plugins` are objects
    with hooks that an agent asks. Raises `SettingsError` for one that cannot be used.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        resolvers: Resolvers | None = None,
        plugins: Sequence[object] = (),
        plugin_settings: PluginSettings | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = AgentMetrics()
        self.plugins = AgentPlugins(plugins, plugin_settings)
        self._resolvers = resolvers
        self._instance_id = secrets.token_hex(8)
        self._workers: dict[Address, Worker] = {}
        self._leaving: set[Worker] = set()
        """Those that still have streams, at brokers that are no longer to be joined."""
        self._owners: dict[Address, Endpoint] = {}
        self._runs: dict[Address, asyncio.Task[None]] = {}
        self._found: dict[Endpoint, frozenset[Address]] = {}
        self._tasks = TaskSet()
        self._choosing: asyncio.Handle | None = None
        self._credentials: Credentials | None = None
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def registered_at(self) -> list[Address]:
        """The brokers' addresses that this agent is registered at now."""
        return [address for address, worker in self._workers.items() if worker.live]

    def why_not_ready(self) -> str | None:
        """None while dials can come: registered at one broker at least, and not stopping."""
        if self._stopping.is_set():
            return "stopping"
        return None if self.registered_at else "registered at no broker"

    async def run(self) -> None:
        """Serve. After `stop` it drains, within the settings' time, and returns.

        Raises `SettingsError` if the TLS files cannot be used, or a plugin.
        """
        self.plugins.start(self.metrics.registry)
        files = self.settings.tls
        if files is not None:
            self._credentials = Credentials(files, Role.AGENT, self.metrics.certificate_expires)
            self._tasks.spawn(self._credentials.watch(self._renew_sessions), "watch TLS files")
        self._found = {endpoint: frozenset() for endpoint in self.settings.endpoints}
        try:
            following = [
                self._tasks.spawn(self._follow(endpoint), f"follow {endpoint}")
                for endpoint in self._found
            ]
            await self._stopping.wait()
            for task in following:
                task.cancel()
            await self._drain()
        finally:
            self._stopping.set()  # if it was cancelled: nobody is joined any more
            for worker in self._all_workers():
                worker.cut()
            await self._tasks.cancel_all()

    def stop(self) -> None:
        """Begin to drain: no new dials, the streams that run may finish."""
        self._stopping.set()

    @property
    def is_quiet(self) -> bool:
        """Whether no stream runs."""
        return all(worker.is_quiet for worker in self._all_workers())

    def _all_workers(self) -> list[Worker]:
        return [*self._workers.values(), *self._leaving]

    async def wait_registered(self) -> None:
        """Wait until the agent is registered at one broker at least."""
        while not self.registered_at:
            await self._changed.wait()

    # Endpoints

    async def _follow(self, endpoint: Endpoint) -> None:
        egress = self.settings.egress
        if egress is not None and not endpoint.srv and egress.carries(endpoint.host):
            # Its name may mean something to the proxy only.
            self._found[endpoint] = frozenset({Address(endpoint.host, endpoint.port)})
            self._reconcile()
            return
        async with aclosing(Discovery(endpoint, self._resolvers).watch()) as found:
            async for addresses in found:
                self._found[endpoint] = self._bounded(endpoint, addresses)
                self._reconcile()

    def _bounded(self, endpoint: Endpoint, found: frozenset[Address]) -> frozenset[Address]:
        """As many as may be joined; those that are joined already come first."""
        most = self.settings.max_brokers
        if len(found) <= most:
            return found
        logger.warning("%s has %d addresses; only %d are joined", endpoint, len(found), most)
        return frozenset(sorted(found, key=lambda each: (each not in self._owners, each))[:most])

    def _reconcile(self) -> None:
        change = reconcile(self._found, self._owners)
        self._owners |= change.join
        for address in change.leave:
            del self._owners[address]
            if address in self._workers:
                self._part(address, "its name has another address now")
        self._choose()

    def _choose(self) -> None:
        """Join and leave what `choice` makes of how things stand."""
        self._choosing = None
        if self._stopping.is_set():
            return
        standing = {address: worker.standing for address, worker in self._workers.items()}
        of_endpoint: dict[Endpoint, list[Address]] = {}
        for address, endpoint in self._owners.items():
            of_endpoint.setdefault(endpoint, []).append(address)
        for endpoint, addresses in of_endpoint.items():
            count = self.settings.broker_count
            chosen = choose(addresses, standing, count, str(self.settings.name))
            for address in chosen:
                if address not in self._workers:
                    self._join(address, endpoint)
            for address in set(addresses) - set(chosen):
                if address in self._workers:
                    self._part(address, f"{count} others of its fabric hold this agent")

    def _join(self, address: Address, endpoint: Endpoint) -> None:
        logger.info("joining the broker at %s (%s)", address, endpoint)
        worker = Worker(
            self.settings,
            address,
            endpoint,
            self,
            self.metrics,
            self.plugins,
            instance_id=self._instance_id,
            credentials=self._credentials,
        )
        self._workers[address] = worker
        self._runs[address] = self._tasks.spawn(worker.run(), f"broker {address}")
        loop = asyncio.get_running_loop()
        loop.call_later(PATIENCE, self._choose_soon)

    def _part(self, address: Address, why: str) -> None:
        logger.info("leaving the broker at %s: %s", address, why)
        worker = self._workers.pop(address)
        self._leaving.add(worker)
        self._tasks.spawn(self._leave(worker, self._runs.pop(address)), f"leave {address}")

    def _choose_soon(self) -> None:
        if self._choosing is None:
            self._choosing = asyncio.get_running_loop().call_soon(self._choose)

    async def _leave(self, worker: Worker, run: asyncio.Task[None]) -> None:
        await worker.drain()
        self._leaving.discard(worker)
        run.cancel()

    def _renew_sessions(self) -> None:
        for worker in self._workers.values():
            worker.renew_if_due()

    async def _drain(self) -> None:
        timeout = self.settings.drain_timeout
        logger.info("stopping: streams have %g s to finish", timeout)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(worker.drain() for worker in self._all_workers()))
        except TimeoutError:
            logger.warning("some streams did not finish within %g s and are cut", timeout)

    # What workers ask of each other (`worker.Brokers`)

    def held(self) -> tuple[str, ...]:
        return tuple(
            worker.live.broker_id
            for worker in self._workers.values()
            if worker.live is not None and worker.live.broker_id is not None
        )

    async def wait_until_free(self, broker_id: str) -> None:
        while broker_id in self.held():
            await self._changed.wait()

    def changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._choose_soon()
