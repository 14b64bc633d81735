"""Examples in docstrings run, so that they stay correct; those of README.md and docs/ are in tests/docs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

from fastnas import nn, ops

ROOT = Path(__file__).parents[1]
OPERATORS = [name for name in ops.__all__ if not name.endswith("_reference")]
PUBLIC = {**{f"ops.{name}": getattr(ops, name) for name in OPERATORS}, "nn.MixedOp": nn.MixedOp}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_of_docstrings(name: str) -> None:
    thing = PUBLIC[name]
    module = importlib.import_module(thing.__module__)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name, module=module) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        test.globs = {}  # an example imports what it needs
        output: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=output.append)
        assert not failed, "".join(output)


@pytest.mark.parametrize("name", OPERATORS)
def test_docstrings_say_everything(name: str) -> None:
    text = inspect.getdoc(getattr(ops, name)) or ""
    wanted = ["Args:", "Returns:", ">>> "] + ([] if name == "normalization_table" else ["Raises:"])
    assert [part for part in wanted if part not in text] == []


def test_the_page_of_operators_lists_all() -> None:
    text = (ROOT / "docs/operators.md").read_text(encoding="utf-8")
    assert [name for name in OPERATORS if f"[`{name}`](../fastnas/ops/" not in text] == []


def test_links_of_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
