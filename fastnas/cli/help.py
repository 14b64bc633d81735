"""--help of every command: docstrings of fields as paragraphs, and words instead of None.

tyro reads types, defaults and docstrings. How it would print them is changed here: it keeps line breaks of docstrings
where a line does not begin with a letter, lists `{None}` among the values, and prints "(default: None)".
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from fastnas.option_types import Options, option_hints

REGISTRY = ConstructorRegistry()

# What a docstring says None stands for, such as "; None for all." or "; None keeps the size."
MEANING_OF_NONE = re.compile(
    r"[;,:.]? *\(?\bNone(?: for|:)? (?P<meaning>(?:[^;.()]|\.(?=\w)|\([^()]*\))+)(?P<end>[;.)]|$)"
)


@REGISTRY.struct_rule
def options_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's rule for a dataclass of options."""
    kind = info.type
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and issubclass(kind, Options)):
        return None
    hints = option_hints(kind)
    fields = []
    for field in dataclasses.fields(kind):
        if field.init:
            default = getattr(info.default, field.name) if isinstance(info.default, kind) else _default(field)
            shown, hint = described(docstring(kind, field.name), default)
            how = tyro.conf.arg(metavar=metavar(hints[field.name]), help_behavior_hint=hint)
            annotated: Any = Annotated[hints[field.name], how]
            fields.append(StructFieldSpec(field.name, annotated, default, shown))
    return StructConstructorSpec(instantiate=kind, fields=tuple(fields))


def described(text: str, default: Any) -> tuple[str, str]:
    """The help of an option, and the words about its default that follow it; none where nothing says what None is."""
    if default is dataclasses.MISSING or default is tyro.MISSING:
        return text, "(required)"
    if default is not None:
        return text, f"(default: {default})"
    found = MEANING_OF_NONE.search(text)
    if found is None:
        return text, ""
    rest = text[: found.start()] + ("." if found["end"] in (".", "") else found["end"]) + text[found.end() :]
    return rest.replace("()", "").strip(), f"(default: {found['meaning'].strip()})"


def metavar(hint: Any) -> str | None:
    """What stands after a flag: INT, {cifar,imagenet}, …; None for tyro's own, where a type is none of these."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return metavar(arguments[0])
    if kind in (Union, types.UnionType):
        given = [each for each in arguments if each is not type(None)]
        return "{True,False}" if given == [bool] else metavar(given[0]) if len(given) == 1 else None
    if kind is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    return {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}.get(hint)


def docstring(kind: type[Any], name: str) -> str:
    """The docstring below a field, as one paragraph; that of the nearest base class that has one."""
    for base in kind.__mro__:
        if name in (found := _docstrings(base)):
            return found[name]
    return ""


@functools.cache
def _docstrings(kind: type[Any]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # a class of an interactive session has no source
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for pair in itertools.pairwise(body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                found[name] = " ".join(text.split())
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default
