"""YAML as a recipe needs it: settings written out, no aliases, nothing twice, nothing endless."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST_CHARACTERS = 2**18
"""Longest text that is read: YAML takes a second for 100,000 characters."""
MOST_LEVELS = 30
"""Deepest nesting that is read."""


def read_yaml(text: str) -> Any:
    """What YAML text says; `yaml.YAMLError` or another `ValueError` where it cannot be taken."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"longer than {MOST_CHARACTERS:,} characters")
    return yaml.load(text, _Loader)


def write_yaml(tree: Any) -> str:
    """YAML text that `read_yaml` takes, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Ten aliases of ten aliases, nine times, are a billion values: an alias is refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise self._refused(self.peek_event(), "an alias; write out what it stands for")
        if self._level == MOST_LEVELS:
            raise self._refused(self.peek_event(), f"nested deeper than {MOST_LEVELS} levels")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise self._refused(key, f"{key.value} is written twice; keep one")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def _refused(self, at: Any, why: str) -> yaml.YAMLError:
        return yaml.YAMLError(f"line {at.start_mark.line + 1}: {why}")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
