"""The script that mitmproxy loads: `mitmdump -s "$(whip addon-path)"`.

In a checkout, `mitmdump -s whip_addon/addon.py` does the same.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

addons: list[Any] = []

try:
    try:
        import whip_addon  # noqa: F401  # only to see whether it is there
    except ModuleNotFoundError:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
    from whip_addon.lifecycle import WhipAddon
except ModuleNotFoundError as error:
    logging.getLogger(__name__).error(
        "whip: %s in the Python that runs this mitmproxy (%s): "
        "`pip install 'whip-tunnel[proxy]'` there, or use `whip mitmdump`",
        error,
        sys.executable,
    )
else:
    addons.append(WhipAddon())
