"""The audit log: who registered, who was refused, who dialled what; a JSON object a line.

A plugin on the broker's events. A thread of its own writes, so that a disk that is slow or
full stops nobody: lines that cannot be kept are counted, and the log says how many are
missing as soon as it can be written again. Nothing of what goes through a stream is in it,
nor paths and headers of requests, where secrets may stand.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whip_core.agents import AgentView, DialFinished, Refusal, StreamClosed
from whip_core.caller import Caller
from whip_core.errors import SettingsError
from whip_core.hookspecs import hookimpl
from whip_core.names import host_port
from whip_core.rare_log import RareLog

logger = logging.getLogger(__name__)

MAX_UNWRITTEN = 10_000
"""Lines that may wait for a slow disk: some megabytes."""
FILE_MODE = 0o600
REFUSALS = 100
"""Refusals written in each `WINDOW`: strangers cause them, and must not fill the disk."""
WINDOW = 60.0
END_TIMEOUT = 5.0
"""Seconds that the last lines have to get to a slow disk when the broker ends."""

_REOPEN, _END = b"reopen", b"end"
"""Orders among the lines, which all end with a newline."""


class AuditLog:
    """Open from `start` to `close`."""

    whip_name = "audit-log"

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._clock = clock
        self._write_to = write
        self._path = path
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_UNWRITTEN)
        self._file = -1
        self._torn = False
        self._lost = 0
        self._log = RareLog(logger)
        self._refusals = 0
        self._window = clock()
        self._dials: dict[str, DialFinished] = {}
        self._writer: threading.Thread | None = None

    def start(self) -> None:
        """Raises `SettingsError` if the file cannot be written."""
        try:
            self._file = self._open()
        except OSError as error:
            raise SettingsError(
                f"--audit-log {self._path} cannot be written: {error.strerror or error}"
            ) from error
        self._writer = threading.Thread(target=self._write_all, name="audit log", daemon=True)
        self._writer.start()

    def reopen(self) -> None:
        """Write to a new file of that name from here on: the old one was moved away."""
        self._order(_REOPEN)

    def close(self) -> None:
        """Write what waits, unless the disk hangs."""
        if self._writer is not None:
            self._order(_END)
            self._writer.join(END_TIMEOUT)

    # Events

    @hookimpl
    def whip_agent_joined(self, agent: AgentView) -> None:
        self._put(
            "registered",
            **_agent(agent),
            ports=agent.ports,
            certificate=agent.certificate_names,
            instance=agent.instance_id,
        )

    @hookimpl
    def whip_agent_left(self, agent: AgentView, reason: str) -> None:
        self._put("left", **_agent(agent), reason=reason)

    @hookimpl
    def whip_name_taken_over(self, agent: AgentView, by: AgentView) -> None:
        self._put(
            "taken-over",
            **_agent(by),
            certificate=by.certificate_names,
            from_session=agent.session_id,
            from_address=_address(agent.address),
        )

    @hookimpl
    def whip_refused(self, refusal: Refusal) -> None:
        now = self._clock()
        if now - self._window >= WINDOW:
            if self._refusals > REFUSALS:
                self._put("refused", left_out=self._refusals - REFUSALS)
            self._window, self._refusals = now, 0
        self._refusals += 1
        if self._refusals <= REFUSALS:
            self._put(
                "refused",
                what=refusal.what,
                reason=refusal.reason,
                address=_address(refusal.address),
                agent=refusal.name,
                text=refusal.text,
            )

    @hookimpl
    def whip_dial_finished(self, dial: DialFinished) -> None:
        if dial.error is None:
            self._put("opened", **_dial(dial))
        else:
            self._put("dial", **_dial(dial), outcome=dial.error.reason, text=str(dial.error))

    @hookimpl
    def whip_stream_opened(self, dial: DialFinished) -> None:
        self._dials[dial.dial_id] = dial

    @hookimpl
    def whip_stream_closed(self, stream: StreamClosed) -> None:
        dial = self._dials.pop(stream.dial_id, None)
        if dial is not None:
            self._put(
                "dial",
                **_dial(dial),
                outcome=stream.cause,
                bytes_to_agent=stream.bytes_to_agent,
                bytes_from_agent=stream.bytes_from_agent,
                seconds=round(stream.seconds, 3),
            )

    # Writing

    def _put(self, event: str, **fields: Any) -> None:
        known = {name: value for name, value in fields.items() if value not in (None, "", ())}
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": moment, "event": event, **known}, separators=(",", ":"))
        try:
            self._lines.put_nowait(line.encode() + b"\n")
        except queue.Full:
            self._lost += 1

    def _order(self, order: bytes) -> None:
        try:
            self._lines.put_nowait(order)
        except queue.Full:
            logger.warning("the audit log's disk is too slow to follow")

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE)

    def _write_all(self) -> None:
        while (line := self._lines.get()) != _END:
            try:
                if line == _REOPEN:
                    self._reopen()
                    continue
            except OSError as error:
                self._log.warning(
                    "cannot reopen the audit log %s, still writing to the old file: %s",
                    self._path,
                    error,
                )
                continue
            try:
                self._write(line)
            except OSError as error:
                self._lost += 1
                self._log.warning("the audit log %s cannot be written: %s", self._path, error)
        os.close(self._file)

    def _reopen(self) -> None:
        old, self._file = self._file, self._open()
        os.close(old)
        self._torn = False

    def _write(self, line: bytes) -> None:
        lost = self._lost
        if lost:
            missing = json.dumps({"event": "missing", "lines": lost}, separators=(",", ":"))
            line = missing.encode() + b"\n" + line
        if self._torn:
            line = b"\n" + line
        written = self._write_to(self._file, line)
        # Half a line is on a disk that is full: the next one must not stand behind it.
        self._torn = written < len(line)
        if self._torn:
            self._lost += 1
        else:
            self._lost -= lost


def _agent(agent: AgentView) -> dict[str, Any]:
    return {
        "agent": agent.name.full,
        "session": agent.session_id,
        "address": _address(agent.address),
    }


def _dial(dial: DialFinished) -> dict[str, Any]:
    agent = dial.agent
    return {
        "dial": dial.dial_id,
        "target": str(dial.target),
        "agent": agent.name.full if agent else None,
        "session": agent.session_id if agent else None,
        "port": dial.port,
        "caller": _caller(dial.caller),
        **({"relayed_by": dial.relayed_by} if dial.relayed_by else {}),
        **({"relayed_for": dial.relayed_for} if dial.relayed_for else {}),
    }


def _caller(caller: Caller) -> dict[str, Any] | None:
    request = caller.request
    known = {
        "address": _address(caller.address) if caller.address else None,
        "user": caller.proxy_user,
        "certificate": caller.certificate_names or None,
        "request_id": caller.request_id,
        "method": request.method if request else None,
        "host": request.host if request else None,
    }
    return {name: value for name, value in known.items() if value is not None} or None


def _address(address: tuple[str, int]) -> str:
    return host_port(*address)
