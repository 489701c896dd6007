"""A client of the control socket: what `whip agents` and `whip top` ask a running broker."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from whip_core import control_socket
from whip_core.errors import WhipError

TIMEOUT = 10.0
"""Seconds for an answer: 10,000 agents take a tenth of one."""
MAX_ANSWER = 256 << 20
"""Octets: 10,000 agents with all the labels that are allowed are 160 MB."""
START_ONE = "start `whip proxy` or `whip forward`, or say where it is: --control-socket=PATH"


class ControlCallFailed(WhipError):
    """The broker could not be asked, or did not do it; the text says what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """HTTP's, if the broker answered."""


def find(chosen: str | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The control socket to use. Raises `ControlCallFailed` unless there is exactly one."""
    if chosen:
        return Path(chosen).expanduser()
    found = control_socket.running(environ)
    if not found:
        raise ControlCallFailed(f"no broker of this user runs here: {START_ONE}")
    if len(found) > 1:
        raise ControlCallFailed(
            f"{len(found)} brokers run here: choose one with --control-socket="
            f"{' or '.join(map(str, found))}"
        )
    return found[0]


def get(path: Path, what: str, **arguments: str) -> Any:
    """Ask the broker at `path` for `what`. Raises `ControlCallFailed`."""
    return _call(path, "GET", what, arguments)


def post(path: Path, what: str, **arguments: str) -> Any:
    """Have the broker do `what`. Raises `ControlCallFailed`."""
    return _call(path, "POST", what, arguments)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def _call(path: Path, method: str, what: str, arguments: Mapping[str, str]) -> Any:
    target = f"/v1/{what}" + (f"?{urlencode(arguments)}" if arguments else "")
    connection = _Connection(path)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER)
        told = json.loads(body)
    except FileNotFoundError as error:
        raise ControlCallFailed(f"there is no control socket {path}: {START_ONE}") from error
    except ConnectionRefusedError as error:
        raise ControlCallFailed(f"no broker listens at {path} any more: {START_ONE}") from error
    except PermissionError as error:
        raise ControlCallFailed(
            f"{path} belongs to another user: run this as whoever runs the broker, or as root"
        ) from error
    except TimeoutError as error:
        raise ControlCallFailed(
            f"the broker at {path} does not answer within {TIMEOUT:g} s"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ControlCallFailed(f"{path} is not a broker's control socket: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        why = told.get("error") if isinstance(told, dict) else None
        raise ControlCallFailed(str(why or f"the broker answered {answer.status}"), answer.status)
    return told
