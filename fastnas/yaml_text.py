"""YAML as people write options."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Numbers, words, yes and no. Dates and numbers to the base of 60 are words."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*), which may grow endlessly")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep=deep)
        if len(result) < len(node.value):
            raise ValueError(f"line {node.start_mark.line + 1} begins a mapping that has a key twice")
        return result

    def construct_number(self, node: yaml.ScalarNode) -> str | int | float:
        if ":" in node.value:
            return str(node.value)
        if node.tag.endswith(":int"):
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in pairs if not tag.endswith((":timestamp", ":merge"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """What a text of YAML says, in plain values: words, numbers, True, False, None, lists and mappings.

    Raises:
        ValueError: it is not YAML, has a key twice, an alias, or a tag of its own; the message is one line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # what a tag makes of a value that does not suit it
        raise ValueError((str(error) or type(error).__name__).split("\n", 1)[0]) from error
