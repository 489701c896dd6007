"""The control socket: where an operator of this machine reaches a running broker.

A unix socket that only its owner can open. Which one a command means it can find itself,
as long as one broker runs: they all are in one folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from whip_core.errors import SettingsError
from whip_core.sockets import answers, bind_unix

STARTS_WITHIN = 60.0
"""Seconds: a broker that starts has its socket before it listens there."""
REMEDY = "choose another --control-socket, or none (--control-socket=)"


def default_path(control_port: int, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the broker that takes agents at `control_port` has its socket."""
    return folders(environ)[0] / f"broker-{control_port}.sock"


def folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where sockets may be, the one for new ones first.

    systemd gives a service a folder (RuntimeDirectory=), a login one for its user.
    """
    given = [Path(text) for text in environ.get("RUNTIME_DIRECTORY", "").split(":") if text]
    login = environ.get("XDG_RUNTIME_DIR")
    found = [*given, *([Path(login) / "whip"] if login else [])]
    if os.geteuid() == 0:
        found.append(Path("/run/whip"))
    elif not login:
        found.append(Path(f"/tmp/whip-{os.geteuid()}"))  # noqa: S108  # `_private` looks whose it is
    return list(dict.fromkeys([*found, Path("/run/whip")]))


def running(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The sockets of brokers that run: this user's own, else what else this user may open."""
    for folder in folders(environ):
        try:
            paths = sorted(folder.glob("*.sock"))
        except OSError:
            continue
        if found := [path for path in paths if answers(path)]:
            return found
    return []


def bind(path: Path, *, in_default_folder: bool) -> socket.socket:
    """Listen at `path`, for this user only. Raises `SettingsError`.

    The socket of a broker that is gone is replaced, that of one that runs is not. In the
    default folder those of others that are gone are removed, too: nobody else would.
    """
    if in_default_folder:
        _private(path.parent)
        _sweep(path.parent)
    if answers(path):
        raise SettingsError(f"a running broker has the control socket {path}: {REMEDY}")
    return bind_unix(path, REMEDY)


def _sweep(folder: Path) -> None:
    """Remove what killed brokers have left."""
    for path in folder.glob("broker-*.sock"):
        with contextlib.suppress(OSError):  # gone by now
            if path.lstat().st_mtime < time.time() - STARTS_WITHIN and _is_dead(path):
                path.unlink()


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # whoever is busy lives
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _private(folder: Path) -> None:
    """Have the folder, with nobody else able to put anything into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingsError(
            f"cannot make the folder {folder} for the control socket: {error.strerror}; {REMEDY}"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SettingsError(
            f"{folder} is not a folder that only this user can write to, "
            f"so no control socket is put there; {REMEDY}"
        )
