"""docs/studies.md: the plans that it prints are in order."""

from __future__ import annotations

import pytest
from doc_pages import ROOT, Block, blocks
from rich.console import Console

from fastnas.study.definition import KEYS, STAGES, read_definition
from fastnas.study.plan import StudyPlan
from fastnas.study.unit_options import check
from fastnas.yaml_text import parse_yaml

PAGE = ROOT / "docs" / "studies.md"
PLANS = [block for block in blocks(PAGE) if block.language == "yaml"]


@pytest.mark.parametrize("block", PLANS, ids=str)
def test_plans_are_in_order(block: Block) -> None:
    plan = StudyPlan(read_definition(parse_yaml(block.text)))
    assert len(plan.cells) > 1
    check(plan, Console(quiet=True))


def test_every_key_and_stage_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*KEYS, *STAGES) if f"`{name}" not in text and f"\n{name}: " not in text] == []
