"""Changes for the worse: of bytes, and of what JSON and YAML hold."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

from hypothesis import strategies as st

WORDS = [
    b"\x00", b"\xff", b"\n", b"\r\n", b"\t", b"\x1b[31m", b"[/red]", b"NaN", b"-Infinity", b"1e999", b"-1", b"0",
    b"null", b"true", b'"', b"{", b"[", b"]", b"}", b":", b",", b"*a", b"&a ", b"!!int ", b"!x ", b"<<: ", b"~",
    b"\xef\xbb\xbf", "α".encode(), "\u2028".encode(), b"99999999999999999999", b"0x10", b"2024-01-31", b"12:30:00",
    b"# ", b"%", b"---",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf]
OTHERS: list[Any] = [None, True, False, "", "x", "[red]", "[/red]", "a\nb", "\x1b[1m", "ü" * 300, [], {}, [[]], [None]]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([*NUMBERS, *OTHERS])
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
"""What JSON can hold."""


def spell(rng: Random, tree: Any) -> bytes:
    """The same as JSON, in one of the ways in which it can be written."""
    if isinstance(tree, dict):
        keys = rng.sample(list(tree), len(tree))
        tree = {key: tree[key] for key in keys}
    text = json.dumps(tree, indent=rng.choice([None, 0, 2, "\t"]), ensure_ascii=rng.random() < 0.5)
    text = text.replace("\n", rng.choice(["\n", "\r\n"])) + rng.choice(["", "\n", "   "])
    return rng.choice([b"", b"\xef\xbb\xbf"]) + text.encode()


def change_bytes(rng: Random, content: bytes, most: int = 4) -> bytes:
    """A few bits flipped, bytes left out, doubled, put in, exchanged, or the end cut off."""
    result = bytearray(content)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(len(result) + 1)
        length = rng.choice([1, 1, 2, 8, 100])
        match rng.randrange(7):
            case 0 if result:
                result[place % len(result)] ^= 1 << rng.randrange(8)
            case 1:
                del result[place : place + length]
            case 2:
                result[place:place] = result[place : place + length]
            case 3:
                result[place:place] = rng.choice(WORDS)
            case 4:
                result[place : place + length] = rng.randbytes(length)
            case 5:
                other = rng.randrange(len(result) + 1)
                result[place : place + length] = result[other : other + length]
            case 6 if rng.random() < 0.3:
                del result[place:]
    return bytes(result)


def change_tree(rng: Random, tree: Any, value: Any) -> Any:
    """A copy in which one value, at any depth, is another one, left out, doubled, or under another name.

    value: what may take its place.
    """
    tree = copy.deepcopy(tree)
    inner = [node for node in _containers(tree) if node]
    if not inner:
        return value
    node = rng.choice(inner)
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    match rng.randrange(6):
        case 0 | 1:
            node[key] = value
        case 2:
            node[key] = rng.choice([*NUMBERS, *OTHERS])
        case 3:
            del node[key]
        case 4:
            if isinstance(node, dict):
                node[rng.choice(["x", "", f"{key}s", "format", 7])] = node.pop(key)
            else:
                node.insert(key, copy.deepcopy(node[key]))
        case 5:
            node[key] = rng.choice([[node[key]], {"x": node[key]}, str(node[key]), rng.choice(inner)])
            if _is_endless(tree):
                node[key] = value
    return tree


def _containers(tree: Any) -> list[Any]:
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            found.append(node)
            waiting += node.values() if isinstance(node, dict) else node
    return found


def _is_endless(tree: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(tree, dict | list):
        return False
    inner = tree.values() if isinstance(tree, dict) else tree
    return id(tree) in above or any(_is_endless(each, (*above, id(tree))) for each in inner)
