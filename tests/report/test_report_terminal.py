"""The drawing of a genotype in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastnas.genotype import CellKind, Genotype
from fastnas.report import print_genotype
from fastnas.report.cell_layout import node_name

KINDS: tuple[CellKind, CellKind] = ("normal", "reduce")


def drawing(genotype: Genotype, width: int = 80, encoding: str = "utf-8", **options: object) -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_genotype(genotype, Console(file=stream, width=width, **options))  # type: ignore[arg-type]
    stream.seek(0)
    return stream.read().splitlines()


def parse(lines: list[str]) -> tuple[list[tuple[str, str]], list[int], str]:
    """The (operation, source) pairs, the line numbers of the nodes and the concatenation of one drawn cell."""
    rows = [line.replace("node ", "node") for line in lines[1:-1]]
    pairs = [(words[2], words[0]) for words in (row.split() for row in rows)]
    nodes = [i for i, row in enumerate(rows) if "▶" in row]
    return pairs, nodes, lines[-1].strip()


@pytest.mark.parametrize("name", Genotype.published_names())
def test_every_pair_is_there_side_by_side_at_80_columns_without_colour(name: str) -> None:
    genotype = Genotype.published(name)
    lines = drawing(genotype)
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 80
    start = lines[0].index("reduction cell")
    for kind, cell in zip(KINDS, ([line[:start] for line in lines], [line[start:] for line in lines]), strict=True):
        pairs, nodes, concat = parse([line for line in cell if line.strip()])
        expected = [
            (primitive, node_name(source) if source < 2 else f"node{source - 2}")
            for node in genotype.pairs(kind)
            for primitive, source in node
        ]
        assert pairs == expected
        assert nodes == list(range(1, len(expected), 2))  # every node stands at the second of its lines
        assert concat == f"c_k = concat(nodes {', '.join(str(n - 2) for n in genotype.concat(kind))})"


def test_a_narrow_terminal_gets_one_cell_below_the_other() -> None:
    lines = drawing(Genotype.published("DARTS_V2"), width=50)
    assert lines[0] == "normal cell"
    assert lines[lines.index("") + 1] == "reduction cell"
    assert max(map(len, lines)) <= 50
    assert len(lines) == 2 * 10 + 1


def test_a_terminal_without_unicode_gets_ascii() -> None:
    lines = drawing(Genotype.published("DARTS_V2"), encoding="ascii")
    assert "\n".join(lines).isascii()
    assert "c_{k-2} -- sep_conv_3x3 -.  " in lines[1]
    assert "c_{k-1} -- sep_conv_3x3 -'--> node 0" in lines[2]


def test_candidates_have_colours_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    genotype = Genotype.published("EG_NAS_cifar10")
    text = "\n".join(drawing(genotype, force_terminal=True, color_system="truecolor"))
    codes: dict[str, set[str]] = {}
    for part in text.split("\x1b[38;2;")[1:]:
        code, _, rest = part.partition("m")
        codes.setdefault(rest.partition("\x1b")[0], set()).add(code)
    assert set(codes) == {primitive for primitive, _ in (*genotype.normal, *genotype.reduce)}
    assert all(len(code) == 1 for code in codes.values())
    assert len(set.union(*codes.values())) == len(codes)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = drawing(Genotype.published("DARTS_V1"), force_terminal=True)
    assert "38;" not in "\n".join(lines)


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    print_genotype(Genotype.published("PDARTS"))
    assert "c_k = concat(nodes 0, 1, 2, 3)" in capsys.readouterr().out
