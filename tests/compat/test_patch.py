"""`patch`: whatever a code base constructs from now on is accelerated."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from foreign import LOSS, NETWORKS, Five, agree, build, images, outcome
from torch import nn

from benchmarks.baselines import confopt, darts, egnas, naslib, nni, p_darts, pc_darts, pt_darts, xautodl
from fastnas import compat
from fastnas.errors import UserError


@pytest.fixture(autouse=True)
def _no_patch_stays() -> Iterator[None]:
    yield
    for name in compat.BASELINES:
        compat.unpatch(name)


def levels(network: nn.Module) -> set[str]:
    return {entry.level for entry in compat.report(network).fused}


MODULES: dict[str, tuple[str, list[ModuleType]]] = {
    "darts": ("darts", [darts]),
    "pc-darts": ("pc-darts", [pc_darts]),
    "p-darts": ("p-darts", [p_darts]),
    "egnas": ("egnas", [egnas]),
    "pt.darts": ("pt.darts", [pt_darts]),
    "xautodl": ("xautodl", [xautodl]),
    "naslib": ("naslib", [naslib]),
    "nni": ("nni choice", [nni]),
    "confopt": ("confopt", [confopt]),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_baseline(name: str) -> None:
    assert set(MODULES) == set(compat.BASELINES)
    case, modules = MODULES[name]
    before = [vars(cls).get("__init__") for module in modules for cls in vars(module).values() if isinstance(cls, type)]
    with compat.patch(name, modules):
        network = build(case)
        x = images(channels=NETWORKS[case][1])
        plain = compat.restore(copy.deepcopy(network))
        agree(outcome(network, x), outcome(plain, x))
    compat.accelerate(plain)
    patched = compat.report(network)
    assert levels(network) >= {"mixed operation"}
    assert [e.kind for e in patched.fused] == [
        e.kind for e in compat.report(plain).fused if e.kind in {e.kind for e in patched.fused}
    ]
    assert not levels(build(case))
    after = [vars(cls).get("__init__") for module in modules for cls in vars(module).values() if isinstance(cls, type)]
    assert before == after


def test_networks_that_are_constructed_again() -> None:
    network = darts.Network(4, 5, 3, LOSS, 2, 2)
    compat.patch("darts", darts)
    twin = network.new()
    assert levels(twin) == {"cell", "mixed operation"}
    assert not levels(network)
    stage = p_darts.Network(4, 5, 3, 2, Five, Five)
    assert not levels(stage)
    compat.unpatch("darts")
    assert not levels(network.new())
    compat.unpatch("darts")  # again is harmless


def test_patch_twice_and_nested() -> None:
    first = compat.patch("darts", darts)
    with compat.patch("darts", darts):
        assert levels(darts.MixedOp(4, 1))
    assert not levels(darts.MixedOp(4, 1))
    with first:  # is not in force any more, and its end undoes nothing
        compat.patch("darts", darts)
    assert levels(darts.MixedOp(4, 1))


def test_subclasses_are_accelerated_when_they_are_complete() -> None:
    class Wider(darts.MixedOp):
        def __init__(self, C: int, stride: int) -> None:
            super().__init__(C, stride)
            self._ops.append(nn.Identity())

        def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return super().forward(x, weights)

    with compat.patch("darts", darts):
        op = Wider(4, 1)
        assert len(op._ops) == 9
        assert not levels(op)


SOURCE = """
from benchmarks.baselines.darts import Cell as _Cell, MixedOp as _MixedOp

class MixedOp(_MixedOp):
    pass
"""


@pytest.mark.parametrize("imported", [True, False], ids=["before", "after"])
def test_modules_by_name(imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script does: its folder is in sys.path, the module is imported before or after the patch."""
    (tmp_path / "model_search.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "model_search", raising=False)
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    if imported:
        importlib.import_module("model_search")
    with compat.patch("darts"):
        module: Any = importlib.import_module("model_search")
        assert module.__file__ == str(tmp_path / "model_search.py")
        assert levels(module.MixedOp(4, 1)) == {"mixed operation"}
    assert not levels(module.MixedOp(4, 1))
    assert sys.meta_path == finders
    monkeypatch.delitem(sys.modules, "model_search", raising=False)


def test_errors() -> None:
    with pytest.raises(UserError, match="known code bases are 'darts'"):
        compat.patch("drats")
    with pytest.raises(UserError, match="known code bases"):
        compat.unpatch("drats")
    with pytest.raises(UserError, match=r"cannot import .naslib.*Give the module"):
        compat.patch("naslib")
    with pytest.raises(UserError, match="has no class Cell or MixedOp"):
        compat.patch("darts", torch)
    with pytest.raises(UserError, match="no module 'not_there'"):
        compat.patch("darts", "not_there")
