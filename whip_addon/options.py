"""The settings as mitmproxy's options: declared, taken from what was set, and checked."""

# mypy: allow-untyped-calls
# (mitmproxy is typed in part.)

from __future__ import annotations

import difflib
from typing import Any

from mitmproxy.addonmanager import Loader
from mitmproxy.exceptions import OptionsError
from mitmproxy.optmanager import OptManager

from whip_addon.settings import BY_NAME, OPTIONS, AddonSettings, read
from whip_core.broker_options import PREFIX
from whip_core.errors import SettingsError


def declare(loader: Loader) -> None:
    """Make the options known to mitmproxy."""
    for option in OPTIONS:
        text = f"{option.help} ({option.flag} of whip proxy)"
        loader.add_option(option.name, option.type, option.default, text)


def take_deferred(options: OptManager) -> None:
    """Apply what was set before the options were known. Raises `SettingsError`.

    mitmproxy does this too, later, but there a bad value makes it drop the whole script
    without a word, and go on without it.
    """
    for name in BY_NAME.keys() & options.deferred.keys():
        value = options.deferred.pop(name)
        try:
            if isinstance(texts := getattr(value, "val", None), list):
                options.set(*([f"{name}={text}" for text in texts] or [name]))
            else:  # from a configuration file
                options.update(**{name: value})
        except (OptionsError, TypeError) as error:
            text = str(error)
            raise SettingsError(text if name in text else f"{name}: {text}") from error


def settings_from(options: OptManager) -> AddonSettings:
    """Raises `SettingsError`."""
    values: dict[str, Any] = {name: getattr(options, name) for name in BY_NAME}
    return read(values)


def check_unknown(options: OptManager) -> None:
    """Raises `SettingsError` if somebody has set a `whip_` option that does not exist."""
    for name in options.deferred:
        if name.startswith(PREFIX):
            # Without what all of them begin with, which alone would make any two alike.
            known = [each.removeprefix(PREFIX) for each in BY_NAME]
            close = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1)
            hint = f": did you mean {PREFIX}{close[0]}?" if close else ""
            raise SettingsError(f"there is no option {name}{hint}")
