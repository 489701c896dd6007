"""What would keep a proxy's broker from starting, found before anything listens.

mitmproxy listens first, starts the addon then, and has its own way of saying that this failed.
"""

from __future__ import annotations

from pathlib import Path

from whip_addon.settings import AddonSettings
from whip_core import control_server, control_socket, monitor, reverse_listener
from whip_core.audit import AuditLog
from whip_core.settings import BrokerSettings
from whip_core.sockets import bind


def check_startable(settings: AddonSettings) -> None:
    """Take each port, socket and file for a moment. Raises `SettingsError` for the first that
    cannot be had; somebody else can still be faster than the broker.
    """
    metrics = monitor.listen_address(settings.metrics_listen) if settings.metrics_chosen else None
    if metrics is not None:
        _take([metrics[0]], metrics[1], "choose another --metrics-listen")
    broker = settings.broker
    if not isinstance(broker, BrokerSettings):
        return
    if broker.audit_log is not None:
        log = AuditLog(broker.audit_log)
        log.start()
        log.close()
    hosts = list(broker.listen_hosts)
    _take(hosts, broker.tcp_listen_port, reverse_listener.REMEDY)
    _take(hosts, broker.grpc_listen_port, control_server.REMEDY)
    if settings.control_socket:
        path = Path(settings.control_socket).expanduser()
        control_socket.bind(path, in_default_folder=False).close()
        path.unlink(missing_ok=True)


def _take(hosts: list[str], port: int, remedy: str) -> None:
    for sock in bind(hosts, port, remedy):
        sock.close()
