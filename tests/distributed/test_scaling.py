"""docs/scaling.md: what it predicts is what the model says, and its job script fits the command in it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from benchmarks.analysis import scaling
from benchmarks.analysis.scaling import LINKS, all_reduce_ms, predict
from fastnas.nn import Supernet
from fastnas.strategies.egnas_variants import PAPER

sys.path.append(str(Path(__file__).parents[1] / "docs"))
from doc_pages import ROOT, blocks

PAGE = ROOT / "docs/scaling.md"


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_the_page_has_the_predictions_of_the_model(link):
    page = PAGE.read_text(encoding="utf-8")
    for row in scaling.table("H100", link):
        assert row in page


def test_the_model_knows_the_network_and_the_variant():
    network = Supernet("egnas", channels=16, layers=8, num_classes=10, partial_channels=4)
    assert 4 * sum(parameter.numel() for parameter in network.weight_parameters()) == scaling.GRADIENT_BYTES
    assert PAPER.population == scaling.INDIVIDUALS
    assert PAPER.samples * PAPER.generations == scaling.GENERATIONS


def test_one_process_exchanges_nothing_and_many_never_get_below_the_exchange():
    floors = scaling.floors_of("H100")
    for link in LINKS:
        assert predict(floors, 1, link) == scaling.Prediction(1, floors[0], 0.0, floors[1])
        assert all_reduce_ms(10**9, 4, link) == pytest.approx(1.5e3 / link.gigabytes_per_second, rel=0.05)
        assert predict(floors, 1000, link).step > all_reduce_ms(scaling.GRADIENT_BYTES, 1000, link)


def test_the_job_script_asks_for_one_task_per_node_and_its_gpus():
    (script,) = (block.text for block in blocks(PAGE) if block.text.startswith("#!/bin/bash"))
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, flags=re.MULTILINE))
    (launched,) = (line for line in script.replace("\\\n", " ").splitlines() if line.startswith("srun "))
    given = get_args_parser().parse_args(shlex.split(launched)[2:])
    assert (asked["nodes"], asked["ntasks-per-node"]) == (given.nnodes, "1")
    assert asked["gpus-per-node"] == given.nproc_per_node
    assert re.fullmatch(r"[\d:]+", asked["time"])
