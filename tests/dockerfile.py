"""A Dockerfile as its instructions, so far as ours uses the language."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field


@dataclass
class Stage:
    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def having(self, word: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == word]


def stages(text: str) -> dict[str, Stage]:
    """Each stage by its name, lines that go on joined."""
    found: dict[str, Stage] = {}
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", kept).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
        elif word:
            stage.instructions.append((word, rest))
    return found


def lineage(all_stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is built on, the first of all first."""
    line: list[Stage] = []
    while name in all_stages:
        line.insert(0, all_stages[name])
        name = all_stages[name].base
    return line


def words(exec_form: str) -> list[str]:
    """The words of CMD, ENTRYPOINT or the command of HEALTHCHECK."""
    listed: list[str] = json.loads(exec_form[exec_form.index("[") :])
    return listed
