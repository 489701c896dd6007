"""What `make docs` adds to the pages of this folder: the reference, made from the code, the
recipes as they stand, and the order of it all. mkdocs calls `on_config` and `on_files`."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

ORDER = {
    "": ["index.md"],
    "Learn": ["tutorial.md"],
    "How to": [
        *("flows.md", "instances.md", "transparent.md", "python.md", "picking.md"),
        *("policy.md", "plugins.md"),
        *("status.md", "operations.md", "containers.md", "brokers.md", "scaling.md"),
        *("recipes.md", "migration.md"),
    ],
    "Reference": [
        f"reference/{name}.md"
        for name in ("commands", "options", "prompt", "facts", "hooks", "metrics", "modules")
    ],
    "Background": ["design.md", "threat-model.md", "faults.md", "benchmarks.md"],
}
"""The pages by group; the ones that are not there yet are passed over."""
LAYERS = {0: "values", 1: "state, without I/O", 2: "async I/O", 3: "assembly"}
"""What design.md calls them."""


def on_config(config: Any) -> Any:
    made = {name for name, _ in generated()}
    listed = {name for names in ORDER.values() for name in names}
    nav: list[Any] = []
    for group, names in ORDER.items():
        there = [name for name in names if name in made or (HERE / name).exists()]
        nav += there if not group else [{group: there}]
    rest = sorted(path.name for path in HERE.glob("*.md") if path.name not in listed)
    config.nav = nav + ([{"More": rest}] if rest else [])
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, text in generated():
        file = File.generated(config, name, content=text)
        if name.startswith("recipes/"):
            file.inclusion = file.inclusion.__class__.NOT_IN_NAV
        files.append(file)
    return files


def generated() -> Iterator[tuple[str, str]]:
    """The name and the text of each page that is made."""
    yield "reference/commands.md", commands()
    yield "reference/options.md", options()
    yield "reference/prompt.md", prompt()
    yield "reference/facts.md", facts()
    yield "reference/hooks.md", hooks()
    yield "reference/metrics.md", metrics()
    yield "reference/modules.md", modules()
    yield from recipes()


def table(*rows: tuple[str, ...]) -> str:
    heading, *rest = rows
    lines = [heading, tuple("---" for _ in heading), *rest]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def commands() -> str:
    from whip_core.cli import main

    text = ["# Commands\n", "Made from the commands themselves; `--help` says the same.\n"]
    first: dict[int, str] = {}
    for name, command in walk(main, "whip"):
        text.append(f"## {name}\n")
        if first.setdefault(id(command), name) != name:
            text.append(f"The same as `{first[id(command)]}`.\n")
            continue
        text.append(f"{inspect.cleandoc(command.help or command.short_help or '')}\n")
        arguments = [
            p.make_metavar(click.Context(command)) for p in command.params if is_argument(p)
        ]
        if arguments:
            text.append(f"`{name} {' '.join(arguments)}`\n")
        found = [option_row(each) for each in command.params if isinstance(each, click.Option)]
        if found:
            text.append(table(("option", "default", "environment", "what it does"), *found))
    return "\n".join(text)


def walk(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=prefix)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


def option_row(option: click.Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in option.opts)
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    is_set = shown is not None and shown != () and "UNSET" not in repr(shown).upper()
    default = "required" if option.required else f"`{shown}`" if is_set else ""
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
    variable = ", ".join(f"`{name}`" for name in variables)
    return names, default, variable, option.help or ""


def options() -> str:
    from whip_addon.settings import OPTIONS, WHILE_RUNNING

    rows = [
        (
            f"`{each.name}`",
            f"`{each.flag}`",
            f"`{each.default}`",
            running(each, WHILE_RUNNING),
            each.help,
        )
        for each in OPTIONS
    ]
    heading = ("option", "flag of `whip proxy`", "default", "while running", "what it does")
    return (
        "# mitmproxy's options\n\nIn mitmproxy's own tools with the addon: `--set NAME=VALUE`, "
        "in its `config.yaml`, or at its prompt.\n\n" + table(heading, *rows)
    )


def running(option: Any, changeable: frozenset[str]) -> str:
    return "yes" if option.name in changeable else "no"


def prompt() -> str:
    from whip_addon.prompt import Prompt

    text = ["# At mitmproxy's prompt\n", "Type `:` in the console, or use mitmweb's command bar.\n"]
    for _, method in sorted(inspect.getmembers(Prompt), key=lambda member: str(member[1])):
        name = getattr(method, "command_name", None)
        if name is not None:
            parameters = list(inspect.signature(method).parameters.values())[1:]
            words = " ".join(parameter_words(each) for each in parameters)
            text.append(f"## {name}\n\n`{f'{name} {words}'.strip()}`\n\n{inspect.getdoc(method)}\n")
    return "\n".join(text)


def parameter_words(parameter: inspect.Parameter) -> str:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"[{parameter.name}...]"
    has_default = parameter.default is not inspect.Parameter.empty
    return f"[{parameter.name}]" if has_default else parameter.name


def facts() -> str:
    from whip_addon.facts import MEANINGS

    rows = [(f"`{key}`", meaning) for key, meaning in MEANINGS.items()]
    return (
        "# Facts of a flow\n\nIn `flow.metadata` of each flow that went through whip.\n\n"
        + table(("key", "what it says"), *rows)
    )


def hooks() -> str:
    from whip_core import hookspecs

    text = ["# Hooks\n", inspect.cleandoc(hookspecs.__doc__ or "") + "\n"]
    for name, function in vars(hookspecs).items():
        if name.startswith("whip_") and callable(function):
            arguments = ", ".join(inspect.signature(function).parameters)
            text.append(f"## {name}\n\n`{name}({arguments})`\n\n{inspect.getdoc(function)}\n")
    return "\n".join(text)


def metrics() -> str:
    from whip_core.metrics import AgentMetrics, BrokerMetrics

    broker = BrokerMetrics()
    broker.watch_parked(dict)
    text = ["# Metrics\n"]
    for title, registry in (
        ("Proxy and forward", broker.registry),
        ("Agent", AgentMetrics().registry),
    ):
        rows = []
        for collector in dict.fromkeys(registry._names_to_collectors.values()):
            for family in collector.describe() if hasattr(collector, "describe") else ():
                named = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
                labels = ", ".join(f"`{label}`" for label in named)
                name = family.name + ("_total" if family.type == "counter" else "")
                rows.append((f"`{name}`", family.type, labels, family.documentation))
        text.append(f"## {title}\n\n{table(('name', 'type', 'labels', 'what it says'), *rows)}")
    return "\n".join(text)


def modules() -> str:
    layers = table_of_layers()
    text = [
        "# Modules\n",
        "A module imports its own layer and those below, which a test holds; why, "
        "is in [design](../design.md).\n",
    ]
    for package in dict.fromkeys(package for packages in layers.values() for package in packages):
        text.append(f"## {package}\n\n```\n{docstring(ROOT / package / '__init__.py')}\n```\n")
        found: dict[int, list[tuple[str, str]]] = {}
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
            first_line = docstring(path).partition("\n")[0]
            layer = layer_of(package, name, layers)
            row = (f"`{name.removesuffix('.__init__')}`", first_line)
            found.setdefault(layer, []).append(row)
        for layer, rows in sorted(found.items()):
            text.append(f"### {package}: layer {layer}, {LAYERS[layer]}\n")
            text.append(table(("module", "what it is"), *rows))
    return "\n".join(text)


def table_of_layers() -> dict[int, dict[str, str]]:
    """What the test of imports holds: the modules of each layer and package, in one string."""
    for node in ast.parse((ROOT / "tests" / "test_layers.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            layers: dict[int, dict[str, str]] = ast.literal_eval(node.value)
            return layers
    raise LookupError("tests/test_layers.py has no LAYERS")


def layer_of(package: str, name: str, layers: dict[int, dict[str, str]]) -> int:
    folder, _, _ = name.rpartition(".")
    for place in (name, f"{folder}.*".lstrip(".")):
        for layer, packages in layers.items():
            if place in packages.get(package, "").split():
                return layer
    raise LookupError(f"{package}.{name} is in no layer")


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def recipes() -> Iterator[tuple[str, str]]:
    folder = ROOT / "recipes"
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    ]
    text = (folder / "README.md").read_text()
    # A folder's entry leads to one of its files; each gets a page that shows it.
    yield "recipes.md", re.sub(r"\]\(([^)]+)\)", r"](recipes/\1.md)", text)
    for path in files:
        name = path.relative_to(folder).as_posix()
        if name != "README.md":
            beside = [p for p in files if p.parent == path.parent != folder and p != path]
            links = "".join(f"\n- [{other.name}]({other.name}.md)" for other in beside)
            shown = path.read_text()
            also = f"\n\nBeside it:\n{links}" if links else ""
            yield f"recipes/{name}.md", f"# recipes/{name}\n\n````\n{shown}````{also}\n"
