"""Addons for mitmproxy that whip's plugins bring: they live as long as whip's own."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

from collections.abc import Iterable

from mitmproxy import ctx, hooks

from whip_core.errors import SettingsError


class PluginAddons:
    """The addon that has them: mitmproxy asks those in `addons` after itself."""

    name = "whip.plugins"

    def __init__(self) -> None:
        self.addons: list[object] = []
        self._is_running = False

    def running(self) -> None:
        # Those that are there by now are told next, by mitmproxy itself.
        self._is_running = True

    async def add(self, brought: Iterable[tuple[str, object]]) -> None:
        """Have addons, each with its plugin's name, as mitmproxy has a script that comes late.

        Raises `SettingsError` for one that mitmproxy cannot have.
        """
        for plugin, addon in brought:
            try:
                ctx.master.addons.register(addon)
                self.addons.append(addon)
                await ctx.master.addons.invoke_addon(
                    addon, hooks.ConfigureHook(set(ctx.options.keys()))
                )
                if self._is_running:
                    await ctx.master.addons.invoke_addon(addon, hooks.RunningHook())
            except Exception as error:  # it is somebody else's code that runs here
                what = f"{type(addon).__name__}: {error}"
                raise SettingsError(f"plugin {plugin}: its mitmproxy addon {what}") from error
