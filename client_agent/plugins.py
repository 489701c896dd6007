"""What an agent asks its plugins: whether a dial may be opened, and to which service."""

from __future__ import annotations

from collections.abc import Iterable

from client_agent.exposure import Backend, parse_service
from whip_core.errors import ServiceRefused, SettingsError
from whip_core.hookspecs import ASKED_BY_AGENTS
from whip_core.local_request import LocalRequest, Redirected, Refused
from whip_core.plugin_host import PluginFailed, PluginHost
from whip_core.plugin_settings import PluginSettings

HOOK = "whip_open_local"


class AgentPlugins:
    """The plugins of one agent. Raises `SettingsError` for one that cannot be used."""

    def __init__(
        self, plugins: Iterable[object] = (), settings: PluginSettings | None = None
    ) -> None:
        self._host = PluginHost(ASKED_BY_AGENTS, "an agent")
        for plugin in plugins:
            self._host.register(plugin)
        self._host.configure(settings or PluginSettings())

    def start(self, registry: object) -> None:
        """Tell them their settings, and where their metrics go. Raises `SettingsError`."""
        self._host.start(registry)

    def backend(
        self, backend: Backend, *, port: int, dial_id: str, broker_id: str | None
    ) -> Backend:
        """Where the dial goes; `backend`, which the port was exposed with, if nobody minds.

        Raises `ServiceRefused` with a plugin's reason, or its name if it fails.
        """
        if not self._host.calls(HOOK):
            return backend
        request = LocalRequest(dial_id, port, str(backend), broker_id)
        try:
            found = self._host.first_result(HOOK, request)
        except PluginFailed as failed:
            raise ServiceRefused(f"the agent's {failed}") from failed
        if found is None:
            return backend
        plugin, answer = found
        if isinstance(answer, Refused):
            raise ServiceRefused(f"the agent's plugin {plugin} refused: {answer.reason}")
        if not isinstance(answer, Redirected):
            raise ServiceRefused(
                f"the agent's plugin {plugin}: {HOOK} gave {answer!r}, and not what "
                "request.refuse or request.redirect gives"
            )
        try:
            return parse_service(answer.service)
        except SettingsError as error:
            raise ServiceRefused(f"the agent's plugin {plugin}: {HOOK}: {error}") from error
