from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnas.counting import count_macs, count_parameters
from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn.derived import DerivedNetwork

SHARED_ORACLES = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "published.json"
SETTINGS: dict[str, dict[str, Any]] = {
    "cifar10": {"num_classes": 10},
    "cifar100": {"num_classes": 100},
    "imagenet": {"num_classes": 1000, "channels": 48, "layers": 14, "stem": "imagenet"},
}
IMAGE = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
ORACLE_RULES = {"macs": "macs_conv_fc", "flops_counter": "flops_counter"}


@cache
def oracles() -> dict[str, Any]:
    if not SHARED_ORACLES.exists():
        pytest.skip("needs ../shared/data/published.json")
    return json.loads(SHARED_ORACLES.read_text())


def network(name: str, data: str) -> DerivedNetwork:
    return DerivedNetwork(Genotype.published(name), **SETTINGS[data])


# Published networks

# Of these no table prints operations; their parameters are in `test_replication_grid_truncates_to_its_table`.
GRID_ONLY = [f"SZU_l{cell}" for cell in (12, 14, 21, 23, 32, 34, 41, 43)]
COUNTED = [name for name in Genotype.published_names() if name not in [*GRID_ONLY, "GDAS_V1"]]
# name, data, parameters, with auxiliary head, MACs, flops-counter
PINNED = [
    ("DARTS_V2", "cifar10", 3_349_342, 3_825_768, 528_359_040, 547_473_024),
    ("DARTS_V2", "imagenet", 4_718_752, 5_979_528, 529_911_552, 544_588_032),
    ("EG_NAS_cifar10", "cifar10", 3_705_742, 4_182_168, 579_894_912, 600_474_240),
    ("SNAS_aggressive", "cifar100", 2_365_552, 2_911_188, 374_964_480, 385_894_656),  # has none
    ("AmoebaNet", "imagenet", 4_627_360, 5_863_560, 526_746_624, 540_557_568),  # 5 nodes, some of them concatenated
]


@pytest.mark.parametrize(("name", "data", "parameters", "with_auxiliary", "macs", "flops"), PINNED)
def test_pinned_counts(name: str, data: str, parameters: int, with_auxiliary: int, macs: int, flops: int) -> None:
    net = network(name, data)
    assert count_parameters(net) == parameters
    assert count_parameters(net, auxiliary=True) == with_auxiliary
    assert count_macs(net, IMAGE[data]) == macs
    assert count_macs(net, IMAGE[data], rule="flops_counter") == flops


def test_counts_of_the_cell_of_gdas() -> None:
    net = network("GDAS_V1", "cifar10")
    assert count_parameters(net) == 3_368_782
    assert count_macs(net, IMAGE["cifar10"]) == 519_428_736


@pytest.mark.parametrize(
    "name",
    # The replications use the same operations in the same skeleton, so they may wait for the slow run.
    [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("SZU_")) for n in COUNTED],
)
def test_published_counts(name: str) -> None:
    expected = oracles()["genotypes"][name]["computed"]
    for data in SETTINGS:
        net = network(name, data)
        assert count_parameters(net) == expected[data]["params"]
        assert count_parameters(net, auxiliary=True) == expected[data]["params_with_aux"]
        # One count per skeleton here, the rule that contains the other on CIFAR-10; the rest below, marked slow.
        if data == "cifar10":
            assert count_macs(net, IMAGE[data], "flops_counter") == expected[data]["flops_counter"]
        if data == "imagenet":
            assert count_macs(net, IMAGE[data]) == expected[data]["macs_conv_fc"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(
    ("data", "rule"),
    [("cifar10", "macs"), ("cifar100", "macs"), ("cifar100", "flops_counter"), ("imagenet", "flops_counter")],
)
def test_remaining_published_counts(name: str, data: str, rule: Any) -> None:
    expected = oracles()["genotypes"][name]["computed"][data]
    assert count_macs(network(name, data), IMAGE[data], rule) == expected[ORACLE_RULES[rule]]


def test_replication_grid_truncates_to_its_table() -> None:
    rows = oracles()["seed_000"]["table1"]
    assert len(rows) == 16
    for row in rows:
        parameters = count_parameters(network(row["genotype"], "cifar10"))
        assert parameters == row["computed_params"]
        assert parameters // 10_000 == round(100 * row["params_M"]), row["genotype"]


# Parameters


def test_shared_parameters_count_once_and_frozen_ones_count() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    second.weight = first.weight
    first.requires_grad_(False)
    assert count_parameters(nn.Sequential(first, second)) == 12 + 4 + 4


def test_architecture_parameters_are_no_weights() -> None:
    inner = nn.Linear(2, 3)
    inner.alphas = nn.ParameterDict({"normal": nn.Parameter(torch.zeros(14, 8))})
    inner.auxiliary_head = nn.Linear(5, 1)
    for module in (inner, nn.Sequential(inner)):
        assert count_parameters(module) == 9
        assert count_parameters(module, auxiliary=True) == 9 + 6


def test_buffers_are_no_parameters() -> None:
    assert count_parameters(nn.BatchNorm2d(5)) == 10
    assert count_parameters(nn.BatchNorm2d(5, affine=False)) == 0


# MACs of single layers, by hand


@pytest.mark.parametrize(
    ("layer", "size", "macs", "flops"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 8, 10), 8 * 10 * 6 * 4 * 9, 8 * 10 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2), (4, 9, 9), 16 * 6 * 4 * 9, 16 * 6 * 4 * 9 + 16 * 6),  # bias
        (nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), (4, 8, 8), 64 * 4 * 25, 64 * 4 * 25),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False), (4, 8, 8), 64 * 4 * 4 * 9, 64 * 4 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (4, 8, 8), 64 * 4 * 6 * 4, 64 * 4 * 6 * 4),
        (nn.Linear(5, 7), (2, 3, 5), 6 * 5 * 7, 6 * 5 * 7),
        (nn.BatchNorm2d(4), (4, 8, 8), 0, 2 * 256),
        (nn.BatchNorm2d(4, affine=False), (4, 8, 8), 0, 256),
        (nn.ReLU(), (4, 8, 8), 0, 256),
        (nn.MaxPool2d(3, 2, padding=1), (4, 8, 8), 0, 256),
        (nn.AvgPool2d(3, 2, padding=1), (4, 8, 8), 0, 256),
        (nn.AdaptiveAvgPool2d(1), (4, 8, 8), 0, 256),
        (nn.Identity(), (4, 8, 8), 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_single_layers(layer: nn.Module, size: tuple[int, ...], macs: int, flops: int) -> None:
    assert count_macs(layer, size) == macs
    assert count_macs(layer, size, rule="flops_counter") == flops


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    assert count_macs(nn.Conv2d(3, 8, 1, dtype=dtype), (3, 2, 2)) == 4 * 24


def test_a_batch_counts_all_images() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_macs(conv, (5, 3, 8, 8)) == 5 * count_macs(conv, (3, 8, 8))


def test_a_layer_that_runs_twice_counts_twice_also_when_called_by_keyword() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.unused = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(input=self.conv(x))

    assert count_macs(Twice(), (3, 4, 4)) == 2 * 16 * 9


def test_module_stays_as_it_is() -> None:
    net = DerivedNetwork(Genotype.published("DARTS_V2"), channels=4, layers=3).double()
    net.cells[0].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    assert count_macs(net, (3, 32, 32)) > 0
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())
    after = net.state_dict()
    assert all(after[key].device.type == "cpu" and torch.equal(after[key], before[key]) for key in before)


def test_the_auxiliary_head_does_not_run() -> None:
    genotype = Genotype.published("DARTS_V2")
    counts = {count_macs(DerivedNetwork(genotype, 4, 3, auxiliary=on).train(), (3, 32, 32)) for on in (True, False)}
    assert len(counts) == 1


@pytest.mark.parametrize("size", [(32, 32), (1, 1, 3, 32, 32), (3, 32, 0), (3, 32, -1), (3, 32, 32.0)])
def test_wrong_input_size(size: Any) -> None:
    with pytest.raises(
        UserError, match=r"input_size is \(.*\), expected positive integers \(C, H, W\) or \(N, C, H, W\)"
    ):
        count_macs(nn.ReLU(), size)


def test_unknown_rule() -> None:
    with pytest.raises(UserError, match="unknown counting rule 'flops': use 'macs' or 'flops_counter'"):
        count_macs(nn.ReLU(), (3, 8, 8), rule="flops")  # type: ignore[arg-type]
