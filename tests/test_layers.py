"""Which module may import which (DESIGN §2), held by reading every import.

An import counts wherever it stands: inside a function and under TYPE_CHECKING too, because
a file that needs another's types cannot be understood, or changed, without it either.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("whip_core", "client_agent", "whip_addon")

# A module imports its own layer and those below. A new file needs a place here: `name.*` is
# everything below a package, `__init__` the package itself.
LAYERS = {
    0: {  # values
        "whip_core": "agents caller control day dial_address errors fabric hookspecs limits"
        " local_request names settings when_asked wire.* wire.__init__",
        "client_agent": "egress endpoints exposure settings",
    },
    1: {  # state, no I/O
        "whip_core": "activity admission agent_table authorization candidates certificates"
        " control_state control_wire decoded_certificate dial_wire fabric_wire first_frame frames"
        " grpc_calls host_patterns json_fields outliers parking pem_files picker_choice pickers"
        " pki plugin_host plugin_settings policy policy_file preamble rare_log registry revocation"
        " routes sticky",
        "client_agent": "backoff choice reach reconcile renewal",
    },
    2: {  # async I/O
        "whip_core": "acceptor awaited channel control_server control_socket control_stream"
        " credentials deadlines dial dial_client dial_socket drain fabric_local fabric_mail"
        " fabric_nats forward framed heartbeat log_lines parked_pool raw relay reverse_listener"
        " session sockets stop_signals strangers stream stream_reader systemd tasks tls tls_records"
        " tls_transport tls_trial web",
        "client_agent": "berth control_client discovery egress_tunnel local outbox parker reverse",
    },
    3: {  # assembly
        "whip_core": "__init__ aiohttp audit broker broker_options broker_values checkup cli"
        " commands.* commands.__init__ control_call dial_checkup dial_desk dialer dials fabrics"
        " guests holding httpx metrics monitor neighbours operating options plugin_sources plugins"
        " process program progress public pytest_plugin registrar relaying remote remote_dial"
        " status testing.* testing.__init__",
        "client_agent": "__init__ agent command doctor plugins session testing worker",
        "whip_addon": "__init__ *",
    },
}

NOT_BELOW_LAYER_2 = ("asyncio", "grpc", "socket", "ssl")

# One module knows how it is used, all others use that module.
ALONE = {
    "google.protobuf": "whip_core.control_wire",
    "h11": "whip_core.web",
    "h2": "whip_core.grpc_calls",
    "prometheus_client": "whip_core.metrics",
    "whip_core.wire": "whip_core.control_wire",
    "nats": "whip_core.fabric_nats",
}
GENERATED = "whip_core.wire"

# What both ends of the tunnel need: all that the agent may know of whip_core.
SHARED_WITH_THE_AGENT = (
    "certificates channel checkup control control_state control_wire credentials deadlines dial"
    " decoded_certificate errors framed frames hookspecs host_patterns local_request log_lines"
    " metrics monitor names options parking plugin_host plugin_settings plugin_sources"
    " preamble process raw relay routes settings stop_signals systemd tasks tls tls_transport"
    " tls_trial"
)
# These could be lifted out of the project nearly as they are.
AGENT_LOGIC = {
    "client_agent.backoff": "errors",
    "client_agent.choice": "errors",
    "client_agent.endpoints": "errors names",
    "client_agent.exposure": "errors names",
    "client_agent.reconcile": "errors",
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """Everything that `source` imports, as `package.module.attribute`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                here = ".".join(module.split(".")[: len(module.split(".")) - up])
                base = f"{here}.{base}".rstrip(".")
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _own_module(name: str, modules: Iterable[str]) -> str | None:
    """The module of ours that an imported name lies in."""
    return max((module for module in modules if _inside(name, module)), key=len, default=None)


IMPORTS = {
    module: _imported_names(path.read_text(), module, path.name == "__init__.py")
    for module, path in FILES.items()
}
OWN_IMPORTS = {
    module: {own for name in names if (own := _own_module(name, FILES)) and own != module}
    for module, names in IMPORTS.items()
}


def _places() -> dict[str, int]:
    """Each entry of the table, in full, and its layer."""
    return {
        f"{package}.{name}".removesuffix(".__init__"): layer
        for layer, packages in LAYERS.items()
        for package, names in packages.items()
        for name in names.split()
    }


def _layer(module: str) -> int:
    places = _places()
    return places[module] if module in places else places[module.rpartition(".")[0] + ".*"]


def _is_placed(module: str) -> bool:
    return not {module, module.rpartition(".")[0] + ".*"}.isdisjoint(_places())


def _importers(name: str) -> set[str]:
    return {
        module
        for module, names in IMPORTS.items()
        if not _inside(module, GENERATED) and any(_inside(imported, name) for imported in names)
    }


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import a.b", {"a.b"}),
        ("from a.b import c as d, e", {"a.b.c", "a.b.e"}),
        ("def f():\n    import a", {"a"}),
        ("if TYPE_CHECKING:\n    from a import b", {"a.b"}),
        ("from . import c", {"pack.age.c"}),
        ("from .c import d", {"pack.age.c.d"}),
        ("from ..c import d", {"pack.c.d"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, imported: set[str]) -> None:
    assert _imported_names(source, "pack.age.module", is_package=False) == imported
    assert _imported_names(source, "pack.age", is_package=True) == imported


def test_every_module_has_a_layer() -> None:
    missing = sorted(module for module in FILES if not _is_placed(module))
    assert not missing, f"say in LAYERS of this test which layer they are in: {missing}"


def test_the_table_of_layers_names_only_modules_that_exist() -> None:
    parents = {module.rpartition(".")[0] + ".*" for module in FILES}
    stale = sorted(place for place in _places() if place not in FILES and place not in parents)
    assert not stale, f"no such module any more, take it out of LAYERS: {stale}"


def test_nothing_imports_a_higher_layer() -> None:
    wrong = [
        f"{module} (layer {_layer(module)}) imports {imported} (layer {_layer(imported)})"
        for module, all_imported in sorted(OWN_IMPORTS.items())
        for imported in sorted(all_imported)
        if _is_placed(module) and _is_placed(imported) and _layer(imported) > _layer(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle() -> None:
    try:
        TopologicalSorter(OWN_IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_values_and_state_do_no_io() -> None:
    wrong = [
        f"{module} (layer {_layer(module)}) imports {name}"
        for module, names in sorted(IMPORTS.items())
        for name in sorted(names)
        if _is_placed(module)
        and _layer(module) < 2
        and any(_inside(name, banned) for banned in NOT_BELOW_LAYER_2)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ALONE)
def test_one_module_alone_imports(name: str) -> None:
    assert _importers(name) == {ALONE[name]}


def test_only_the_addon_imports_mitmproxy() -> None:
    assert {module.partition(".")[0] for module in _importers("mitmproxy")} == {"whip_addon"}


def test_the_core_imports_neither_of_its_siblings() -> None:
    siblings = _importers("client_agent") | _importers("whip_addon")
    assert {module for module in siblings if _inside(module, "whip_core")} == set()


def test_agent_and_addon_meet_only_in_the_demo() -> None:
    assert {module for module in _importers("whip_addon") if _inside(module, "client_agent")} == (
        set()
    )
    assert {module for module in _importers("client_agent") if _inside(module, "whip_addon")} <= {
        "whip_addon.demo"
    }


def _core(names: str) -> set[str]:
    return {f"whip_core.{name}" for name in names.split()}


def _imported_from_core(module: str) -> set[str]:
    return {imported for imported in OWN_IMPORTS[module] if _inside(imported, "whip_core")}


def test_the_agent_imports_from_the_core_only_what_both_ends_share() -> None:
    shared = _core(SHARED_WITH_THE_AGENT)
    wrong = {
        module: sorted(_imported_from_core(module) - shared)
        for module in FILES
        if _inside(module, "client_agent") and not _imported_from_core(module) <= shared
    }
    assert wrong == {}


@pytest.mark.parametrize("module", AGENT_LOGIC)
def test_the_agents_own_logic_knows_hardly_anything_of_the_core(module: str) -> None:
    assert _imported_from_core(module) <= _core(AGENT_LOGIC[module])


def test_the_agent_process_never_imports_mitmproxy() -> None:
    modules = sorted(module for module in FILES if _inside(module, "client_agent"))
    assert "client_agent.command" in modules
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] == 'mitmproxy'))"
    )
    command = [sys.executable, "-c", program, *modules]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr
