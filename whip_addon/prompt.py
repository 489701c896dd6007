"""The commands at mitmproxy's prompt (`:` in the console, the command bar of mitmweb)."""

# mypy: allow-untyped-calls, allow-untyped-decorators
# (mitmproxy is typed in part.)

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mitmproxy.types
from mitmproxy import command, flow
from mitmproxy.exceptions import CommandError
from mitmproxy.http import HTTPFlow
from mitmproxy.log import ALERT

from whip_addon.across import Across
from whip_addon.console import StatusNote, show_lines
from whip_addon.directory import instance_named, members_of
from whip_addon.faults import EXAMPLES, OFF, Fault, Faults
from whip_addon.pins import Pins
from whip_addon.replies import why_not_replayed
from whip_core.agents import AgentView
from whip_core.errors import SettingsError, UnknownName
from whip_core.names import host_port
from whip_core.tasks import TaskSet

logger = logging.getLogger(__name__)

FAULT_SECONDS = 60


class Agents(Protocol):
    """What the commands need of a `whip_core.Broker`."""

    @property
    def agents(self) -> list[AgentView]: ...
    def kick(self, name: str) -> None: ...


class Name(str):
    """An argument that is a registered name; the prompt completes it."""


class FaultText(str):
    """An argument that says what is to go wrong."""


class _TextType(mitmproxy.types._BaseType):
    def parse(self, manager: Any, typ: Any, s: str) -> str:
        return s

    def is_valid(self, manager: Any, typ: Any, val: Any) -> bool:
        return isinstance(val, str)


class _NameType(_TextType):
    typ = Name
    display = "name"

    def completion(self, manager: Any, t: Any, s: str) -> Sequence[str]:
        try:
            names: Sequence[str] = manager.execute("whip.names")
        except CommandError:
            return []
        return names


class _FaultType(_TextType):
    typ = FaultText
    display = "fault"

    def completion(self, manager: Any, t: Any, s: str) -> Sequence[str]:
        return EXAMPLES


for _type in (_NameType, _FaultType):
    mitmproxy.types.CommandTypes.typemap[_type.typ] = _type()


class Prompt:
    """`broker` gives the one that runs, if any."""

    name = "whip.prompt"

    def __init__(self, broker: Callable[[], Agents | None], pins: Pins) -> None:
        self._broker = broker
        self._pins = pins
        self._tasks = TaskSet()
        self._across = Across()
        self.faults = Faults(self._fault_over)
        self._status_note = StatusNote(self.faults.summary)
        self.addons: list[object] = [self._across]

    def running(self) -> None:
        self._status_note.install()

    # Not a coroutine function: mitmproxy cannot wait where it loads a changed script.
    def done(self) -> None:
        self._tasks.cancel()
        self._status_note.uninstall()

    @command.command("whip.agents")
    def agents(self) -> mitmproxy.types.Data:
        """The registered agents: name, ports, labels, streams, parked, round trip, address."""
        rows = [["name", "ports", "labels", "streams", "parked", "rtt ms", "from", "fault"]]
        for agent in self._agents():
            fault = self.faults.on(agent.name.full)
            rows.append(
                [
                    agent.name.full + (" (draining)" if agent.draining else ""),
                    ",".join(map(str, agent.ports)),
                    ",".join(f"{key}={value}" for key, value in sorted(agent.labels.items())),
                    str(agent.streams),
                    str(agent.parked),
                    f"{agent.round_trip * 1000:.1f}" if agent.round_trip is not None else "",
                    host_port(*agent.address),
                    str(fault or ""),
                ]
            )
        return rows  # type: ignore[return-value]  # what mitmproxy means by Data

    @command.command("whip.names")
    def names(self) -> Sequence[str]:
        """Every name that can be dialled: instances and domains."""
        names = [agent.name for agent in self._agents()]
        return sorted({name.full for name in names} | {name.domain for name in names})

    @command.command("whip.pick")
    def pick(self, name: Name, instance: Name = Name("")) -> None:  # noqa: B008
        """Send all requests for a name to one instance; without an instance, end that."""
        if instance:
            found = self._instance(instance)
            members = self._members(name)
            if found not in [member.full for member in members]:
                raise CommandError(f"{found} is not an instance of {name}")
            self._pins.pin(name, found)
            _alert(f"{name} goes to {found} now; `whip.pick {name}` ends that")
        elif self._unpin(name):
            _alert(f"{name} is no longer pinned: the picker chooses again")
        else:
            raise CommandError(f"{name} is not pinned; say to which instance")

    @command.command("whip.kick")
    def kick(self, instance: Name) -> None:
        """End an agent's session; its streams go on, and it registers again."""
        found, broker = self._instance(instance), self._broker()
        assert broker is not None  # it has just told who is registered
        try:
            broker.kick(found)
        except UnknownName as error:  # it is registered at another broker
            raise CommandError(str(error)) from error
        _alert(f"{found}: session ended")

    @command.command("whip.fault")
    def fault(self, instance: Name, fault: FaultText, seconds: int = FAULT_SECONDS) -> None:
        """Put a fault on one instance: delay=2s, throttle=10k, reset, status=503; off ends it."""
        try:
            if fault.strip().lower() == OFF:
                lifted = self.faults.lift(_known_or_faulty(instance, self.faults, self._instance))
                if lifted is None:
                    raise CommandError(f"{instance} has no fault")
                _alert(f"FAULT OFF {instance}: {lifted}")
                return
            found = self._instance(instance)
            parsed = Fault.parse(fault)
            self.faults.put(found, parsed, seconds)
        except SettingsError as error:
            raise CommandError(str(error)) from error
        _alert(f"FAULT ON {found}: {parsed}, for {seconds} s (`whip.fault {found} off` ends it)")

    @command.command("whip.replay.across")
    def replay_across(self, flow: flow.Flow, domain: Name, *ignored_headers: str) -> None:
        """Send a flow's request to every instance of a domain; shows which answers differ."""
        if not isinstance(flow, HTTPFlow):
            raise CommandError("only HTTP requests can be replayed")
        if why := why_not_replayed(flow):
            raise CommandError(f"this flow cannot be replayed: {why}")
        if flow.live:
            raise CommandError("this flow has not ended yet")
        instances = [member.full for member in self._members(domain)]
        _alert(f"replaying to {len(instances)} instances of {domain} ...")
        self._tasks.spawn(self._replay(flow, domain, instances, ignored_headers), "replay across")

    async def _replay(
        self, flow: HTTPFlow, domain: str, instances: list[str], ignored: Sequence[str]
    ) -> None:
        comparison = await self._across.replay(flow, instances, ignored)
        request = flow.request
        differing = ", ".join(comparison.differences) or "none"
        unreached = comparison.unreached
        missing = f"; not reached: {', '.join(unreached)}" if unreached else ""
        table = comparison.text()
        logger.info("%s %s across %s:\n%s", request.method, request.path, domain, table)
        count = len(instances) - len(unreached)
        _alert(f"across {domain}: {count} answers; differing: {differing}{missing}")
        show_lines(table.splitlines())  # mitmdump and mitmweb have it in their logs

    # What the arguments mean

    def _agents(self) -> list[AgentView]:
        broker = self._broker()
        if broker is None:
            raise CommandError("the broker is not running")
        return sorted(broker.agents, key=lambda agent: agent.name.full)

    def _instance(self, name: str) -> str:
        try:
            return instance_named(name, [agent.name for agent in self._agents()]).full
        except UnknownName as error:
            raise CommandError(str(error)) from error

    def _members(self, domain: str) -> list[Any]:
        try:
            return list(members_of(domain, [agent.name for agent in self._agents()]))
        except UnknownName as error:
            raise CommandError(str(error)) from error

    def _unpin(self, name: str) -> bool:
        try:
            return self._pins.unpin(name)
        except ValueError as error:
            raise CommandError(str(error)) from error

    def _fault_over(self, instance: str, fault: Fault) -> None:
        _alert(f"FAULT OVER {instance}: {fault}")


def _known_or_faulty(name: str, faults: Faults, instance: Callable[[str], str]) -> str:
    """An instance may have left while its fault is on."""
    return name if name in faults.active else instance(name)


def _alert(text: str) -> None:
    """In every log, and for a moment in the console's status bar."""
    logger.log(ALERT, "whip: %s", text)
