"""What a broker asks its plugins, and what their answers and failures come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whip_core.agents import (
    AgentView,
    DialFinished,
    Peer,
    Refusal,
    Registration,
    RequestFinished,
    StreamClosed,
)
from whip_core.caller import Caller
from whip_core.errors import PluginError, SettingsError
from whip_core.fabric import Fabric
from whip_core.fabrics import ShippedFabrics
from whip_core.hookspecs import ASKED_BY_BROKERS
from whip_core.names import Target
from whip_core.picker_choice import ChosenPicker
from whip_core.plugin_host import Call, Described, PluginFailed, PluginHost
from whip_core.plugin_settings import PluginSettings
from whip_core.settings import FabricSettings


@dataclass(frozen=True, slots=True)
class Picked:
    """What a plugin's `whip_pick` gave. Whether it is a candidate, the dialer knows."""

    plugin: str
    agent: object

    def refused(self, target: Target) -> PluginError:
        """The error for one that was not a candidate."""
        given = f"agent {self.agent.name}" if isinstance(self.agent, AgentView) else self.agent
        return PluginError(
            f"{target}: plugin {self.plugin}: whip_pick gave {given!s:.80}, "
            "which was not a candidate"
        )


class Plugins:
    """The plugins of one broker. Raises `SettingsError` for one that cannot be used."""

    def __init__(
        self, plugins: Iterable[object] = (), settings: PluginSettings | None = None
    ) -> None:
        self._host = PluginHost(ASKED_BY_BROKERS, "a broker")
        for plugin in plugins:
            self._host.register(plugin)
        self._host.configure(settings or PluginSettings())
        self.go_by_caller = any(
            self._goes_by_caller(call, None)
            for hook in ("whip_resolve", "whip_pick")
            for call in self._host.calls(hook)
        )
        """Whether any of them resolves or picks by who asks."""
        self.judge_dials = bool(self._host.calls("whip_authorize_dial"))
        """Whether any of them has a say in who may dial."""
        self.resolve_dials = bool(self._host.calls("whip_resolve"))
        """Whether any of them has a say in what a target stands for."""

    def start(self, registry: object) -> None:
        """Tell them their settings, and where their metrics go. Raises `SettingsError`."""
        self._host.start(registry)

    def describe(self) -> list[Described]:
        return self._host.describe()

    def mitmproxy_addons(self) -> list[tuple[str, object]]:
        """Each with its plugin's name. Raises `SettingsError` for what is not a list of addons."""
        addons: list[tuple[str, object]] = []
        for plugin, given in self._host.gather("whip_mitmproxy_addons"):
            if given is None:
                continue
            if not isinstance(given, list | tuple):
                raise SettingsError(
                    f"plugin {plugin}: whip_mitmproxy_addons gave {given!r}, not a list of addons"
                )
            addons += [(plugin, addon) for addon in given]
        return addons

    # Decisions

    def resolve(self, target: Target, caller: Caller) -> Target:
        """Another target, or the same one. Raises `PluginError` if a plugin fails."""
        found = self._ask("whip_resolve", target, caller)
        if found is None:
            return target
        plugin, answer = found
        if not isinstance(answer, Target):
            raise PluginError(
                f"{target}: plugin {plugin}: whip_resolve gave {answer!r}, which is not a Target"
            )
        try:
            return Target.parse(answer.name, answer.port)
        except ValueError as error:
            raise PluginError(f"{target}: plugin {plugin}: whip_resolve: {error}") from error

    def pick(self, target: Target, candidates: Sequence[AgentView], caller: Caller) -> Picked:
        """What was picked, not checked yet. Raises `PluginError` if a plugin fails."""
        found = self._ask("whip_pick", target, candidates, caller)
        if found is None:
            raise PluginError(f"{target}: no plugin picked one of {len(candidates)} agents")
        return Picked(*found)

    def pick_by_caller(
        self, target: Target, candidates: Sequence[AgentView], caller: Caller
    ) -> AgentView | None:
        """The pick, if it is one by who asks; None if another caller's would do as well.

        A plugin goes by the caller if its hook takes that argument; a built-in picker says
        it itself. Raises `PluginError`.
        """
        for call in self._host.calls("whip_pick"):
            by_caller = self._goes_by_caller(call, target)
            if not by_caller and isinstance(call.owner, ChosenPicker):
                return None  # it would pick, and it has turns and chances to keep
            try:
                picked = self._host.answer(call, target, candidates, caller)
            except PluginFailed as failed:
                raise PluginError(f"{target}: {failed}") from failed
            if picked is not None:
                return picked if by_caller and isinstance(picked, AgentView) else None
        return None

    @staticmethod
    def _goes_by_caller(call: Call, target: Target | None) -> bool:
        if isinstance(call.owner, ChosenPicker):
            return call.owner.picks_by_caller(target)
        return "caller" in call.takes

    async def veto_of_agent(self, registration: Registration, peer: Peer) -> str | None:
        """The first reason against the registration, or None. All are asked."""
        return await self._host.first_reason("whip_authorize_agent", registration, peer)

    async def veto_of_dial(self, target: Target, agent: AgentView, caller: Caller) -> str | None:
        """The first reason against the dial, or None. All are asked."""
        return await self._host.first_reason("whip_authorize_dial", target, agent, caller)

    def _ask(self, hook: str, target: Target, *arguments: object) -> tuple[str, object] | None:
        try:
            return self._host.first_result(hook, target, *arguments)
        except PluginFailed as failed:
            raise PluginError(f"{target}: {failed}") from failed

    # Events

    def check_fabric(self, settings: FabricSettings) -> None:
        """Raises `SettingsError` if it is known before the start that nobody can make it.

        Other plugins than ours may need their settings first, so they are not asked yet.
        """
        if all(call.plugin == ShippedFabrics.whip_name for call in self._host.calls("whip_fabric")):
            self.fabric(settings)

    def fabric(self, settings: FabricSettings) -> Fabric:
        """What the first plugin makes of them; `SettingsError` if none knows how, or one fails."""
        for call in self._host.calls("whip_fabric"):
            try:
                made: Fabric | None = call([settings])
            except SettingsError:
                raise  # said to the user, who reads it as it is
            except Exception as error:
                raise SettingsError(
                    f"plugin {call.plugin}: {call.hook} failed: {error!r}"
                ) from error
            if made is not None:
                return made
        raise SettingsError(
            f"--fabric {settings.url!r}: no plugin makes such a fabric; "
            "write nats://host:4222 or tls://host:4222"
        )

    def agent_joined(self, agent: AgentView) -> None:
        self._host.notify("whip_agent_joined", agent)

    def agent_left(self, agent: AgentView, reason: str) -> None:
        self._host.notify("whip_agent_left", agent, reason)

    def name_taken_over(self, agent: AgentView, by: AgentView) -> None:
        self._host.notify("whip_name_taken_over", agent, by)

    def refused(self, refusal: Refusal) -> None:
        self._host.notify("whip_refused", refusal)

    def round_trip(self, agent: AgentView, seconds: float) -> None:
        self._host.notify("whip_round_trip", agent, seconds)

    def dial_finished(self, dial: DialFinished) -> None:
        self._host.notify("whip_dial_finished", dial)

    def response_seen(self, agent: AgentView, status: int) -> None:
        self._host.notify("whip_response_seen", agent, status)

    def stream_opened(self, dial: DialFinished) -> None:
        self._host.notify("whip_stream_opened", dial)

    def stream_closed(self, stream: StreamClosed) -> None:
        self._host.notify("whip_stream_closed", stream)

    def request_finished(self, request: RequestFinished) -> None:
        self._host.notify("whip_request_finished", request)
