from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.genotype import Genotype
from fastnas.nn.derived import AuxiliaryHead, DerivedNetwork
from fastnas.nn.derived_cell import DerivedCell, drop_path
from fastnas.nn.primitives import FactorizedReduce, ReLUConvNorm, make_primitive

DARTS = Genotype.published("DARTS_V2")
# Three nodes against one, subsets and an order of their own in the concatenation, one source used twice.
UNEVEN = Genotype(
    normal=[*[("skip_connect", 0)] * 2, ("sep_conv_3x3", 2), ("max_pool_3x3", 1), ("dil_conv_5x5", 3), ("none", 0)],
    normal_concat=[4, 2],
    reduce=[("skip_connect", 0), ("avg_pool_3x3", 1)],
    reduce_concat=[2],
)


def images(batch: int = 2, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def small(genotype: Genotype = DARTS, **options: Any) -> DerivedNetwork:
    torch.manual_seed(0)
    return DerivedNetwork(genotype, **({"channels": 4, "layers": 3} | options))


# Outputs


def test_evaluation_gives_logits_and_training_adds_the_auxiliary_ones() -> None:
    net = small(num_classes=7)
    logits = net.eval()(images())
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 7)
    trained = net.train()(images())
    assert isinstance(trained, tuple)
    assert [output.shape for output in trained] == [(2, 7), (2, 7)]


def test_without_auxiliary_head_training_gives_logits_only() -> None:
    net = small(auxiliary=False)
    assert net.auxiliary_head is None
    assert not any("auxiliary" in name for name in net.state_dict())
    assert isinstance(net.train()(images()), Tensor)


@pytest.mark.parametrize("name", Genotype.published_names())
def test_every_published_genotype_runs(name: str) -> None:
    logits = small(Genotype.published(name), auxiliary=False).eval()(images(size=16))
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("genotype", [DARTS, UNEVEN], ids=["darts", "uneven"])
@pytest.mark.parametrize(("size", "channels"), [(1, 3), (7, 1), (8, 1), (13, 4), (33, 3)])
def test_any_image_size_and_number_of_channels(genotype: Genotype, size: int, channels: int) -> None:
    net = small(genotype, in_channels=channels, auxiliary=False).eval()
    assert net(images(size=size, channels=channels)).shape == (2, 10)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 8])
def test_reductions_at_one_and_two_thirds(layers: int) -> None:
    net = small(layers=layers, backend="reference").eval()
    kinds = ["reduce" if isinstance(cell.primitives[0], nn.MaxPool2d) else "normal" for cell in net.cells]
    assert {index for index, kind in enumerate(kinds) if kind == "reduce"} == {layers // 3, 2 * layers // 3}
    channels, height, shapes = 4, 16, []
    for cell, kind in zip(net.cells, kinds, strict=True):
        channels, height = (2 * channels, height // 2) if kind == "reduce" else (channels, height)
        cell.register_forward_hook(lambda cell, args, output: shapes.append(tuple(output.shape)))
        assert cell.preprocess1.conv.out_channels == channels
    net(images(size=16))
    assert shapes[-1] == (2, 4 * channels, height, height)
    assert len(shapes) == layers


def test_preprocessing_halves_the_first_state_after_a_reduction() -> None:
    net = small(layers=5)  # reductions at 1 and 3
    kinds = [type(cell.preprocess0) for cell in net.cells]
    assert kinds == [ReLUConvNorm, ReLUConvNorm, FactorizedReduce, ReLUConvNorm, FactorizedReduce]


# The cell, against its definition


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_cell_is_the_sum_over_edges_and_the_concatenation(kind: Any) -> None:
    torch.manual_seed(0)
    cell = DerivedCell(DARTS, kind, (5, 7), channels=4, reduction_before=False).eval()
    s0, s1 = images(channels=5, size=6), images(channels=7, size=6)
    states = [cell.preprocess0(s0), cell.preprocess1(s1)]
    for node in range(4):
        parts = []
        for edge in (2 * node, 2 * node + 1):
            name, source = getattr(DARTS, kind)[edge]
            strided = kind == "reduce" and source < 2
            expected = make_primitive(name, 4, 2 if strided else 1, norm=nn.BatchNorm2d)
            assert str(cell.primitives[edge]) == str(expected)
            parts.append(cell.primitives[edge](states[source]))
        states.append(parts[0] + parts[1])
    assert torch.equal(cell(s0, s1), torch.cat(states[2:], 1))


def test_concatenation_follows_its_order() -> None:
    torch.manual_seed(0)
    cell = DerivedCell(UNEVEN, "normal", (4, 4), channels=4, reduction_before=False).eval()
    s0, s1 = images(channels=4, size=6), images(channels=4, size=6)
    output = cell(s0, s1)
    assert output.shape == (2, 8, 6, 6)
    assert torch.equal(output[:, 4:], 2 * cell.preprocess0(s0)), "node 2, two skips of one source, comes last"


def test_derived_networks_have_affine_norms_and_bare_pools() -> None:
    net = small()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.affine for norm in norms)
    assert isinstance(net.cells[1].primitives[0], nn.MaxPool2d)


# Stems and auxiliary heads


def test_imagenet_stem_divides_the_size_by_eight() -> None:
    net = small(stem="imagenet", auxiliary=False).eval()
    s0, s1 = net.stem(images(size=64))
    assert (s0.shape, s1.shape) == ((2, 4, 16, 16), (2, 4, 8, 8))
    assert isinstance(net.cells[0].preprocess0, FactorizedReduce)
    for size in (64, 75):
        assert net(images(size=size)).shape == (2, 10)


def test_both_auxiliary_heads() -> None:
    cifar, imagenet = AuxiliaryHead(6, 10, "cifar"), AuxiliaryHead(6, 10, "imagenet")
    assert isinstance(cifar.features[6], nn.BatchNorm2d)
    assert not isinstance(imagenet.features[6], nn.BatchNorm2d)
    for head, sizes in ((cifar, (8, 9, 10)), (imagenet, (7, 8))):
        for size in sizes:
            assert head(images(channels=6, size=size)).shape == (2, 10)
        for size in (1, sizes[0] - 1, sizes[-1] + 1):
            with pytest.raises(UserError, match=f"got feature maps of {size}×{size}, expected {sizes[0]}×{sizes[0]}"):
                head(images(channels=6, size=size))


@pytest.mark.parametrize("normalised", [None, True, False])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_the_norm_of_the_auxiliary_head_is_saved_with_it(stem: str, normalised: bool | None, tmp_path: Path) -> None:
    """P-DARTS has it for ImageNet, the code of DARTS does not."""
    net = small(stem=stem, auxiliary_norm=normalised)
    again = DerivedNetwork.load(net.save(tmp_path / "net"))
    expected = (stem == "cifar") if normalised is None else normalised
    for network in (net, again):
        assert network.auxiliary_head is not None
        assert isinstance(network.auxiliary_head.features[6], nn.BatchNorm2d) == expected
    assert again.options == net.options


def test_auxiliary_head_averages_5x5_windows() -> None:
    head = AuxiliaryHead(2, 10, "cifar")
    x = images(channels=2, size=8)
    windows = x.relu().unfold(2, 5, 3).unfold(3, 5, 3).mean((-2, -1))
    torch.testing.assert_close(head.features[:2](x), windows)


def test_auxiliary_head_reads_the_cell_at_two_thirds() -> None:
    net = small(layers=6, backend="reference").train()
    seen: dict[str, Tensor] = {}
    net.cells[4].register_forward_hook(lambda cell, args, output: seen.update(cell=output))
    assert net.auxiliary_head is not None
    net.auxiliary_head.register_forward_pre_hook(lambda head, args: seen.update(head=args[0]))
    net(images())
    assert seen["head"] is seen["cell"]


def test_small_images_need_no_auxiliary_head() -> None:
    net = small()
    assert net.eval()(images(size=8)).shape == (2, 10)
    with pytest.raises(UserError, match=r"feature maps of 2×2, expected 8×8 \(images of 32×32 .* auxiliary=False"):
        net.train()(images(size=8))


# Multi-level genotypes


def multi_level() -> Genotype:
    """Five cells that differ in their primitives: the levels and kinds can be told apart."""
    primitives = ("sep_conv_3x3", "max_pool_3x3", "sep_conv_5x5", "avg_pool_3x3", "dil_conv_3x3")
    return Genotype.multi_level(([(name, 0), (name, 1)], [2]) for name in primitives)


@pytest.mark.parametrize(("layers", "reductions"), [(20, (6, 13)), (14, (4, 9)), (3, (1, 2))])
def test_levels_have_cells_of_their_own(layers: int, reductions: tuple[int, int]) -> None:
    genotype = multi_level()
    net = small(genotype, layers=layers, channels=2, auxiliary=False).eval()
    expected = []
    for index in range(layers):
        level = sum(place < index for place in reductions)
        expected.append(genotype.kinds[2 * level + (index in reductions)])
    assert list(genotype.layout(layers)) == expected
    for cell, kind in zip(net.cells, expected, strict=True):
        assert {type(primitive) for primitive in cell.primitives} == {
            type(make_primitive(name, 2, 1, norm=nn.BatchNorm2d)) for name, _ in genotype.pairs(kind)[0]
        }
    assert net(images(size=16)).shape == (2, 10)


# Drop path


def test_drop_path_drops_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2, 2)
    y = drop_path(x, 0.3)
    per_sample = y.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1)), "a sample is dropped or kept as a whole"
    values = per_sample[:, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.7]))
    # Standard deviation of the mean is sqrt(0.3 / 0.7 / 4000) = 0.0104.
    assert abs(y.mean().item() - 1) < 0.042


def test_drop_path_of_zero_is_the_identity() -> None:
    x = images()
    assert torch.equal(drop_path(x, 0.0), x)


def test_drop_path_keeps_dtype_and_scales_gradients() -> None:
    x = torch.ones(64, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    y = drop_path(x, 0.5)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert torch.equal(x.grad, y)


def cell_outputs(genotype: Genotype, training: bool, probability: float) -> Tensor:
    torch.manual_seed(0)
    cell = DerivedCell(genotype, "normal", (4, 4), channels=4, reduction_before=False)
    for norm in cell.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # the same statistics in every call
    cell.training = training
    return cell(images(64, 6, 4), images(64, 6, 4), probability)


def one_node(primitive: str) -> Genotype:
    pairs = [("none", 0), (primitive, 0)]
    return Genotype(pairs, [2], pairs, [2])


def test_drop_path_never_touches_the_identity() -> None:
    torch.testing.assert_close(
        cell_outputs(one_node("skip_connect"), True, 0.9), cell_outputs(one_node("skip_connect"), False, 0.9)
    )


@pytest.mark.parametrize("primitive", ["sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "avg_pool_3x3"])
def test_drop_path_acts_on_every_other_primitive_in_training_only(primitive: str) -> None:
    kept = cell_outputs(one_node(primitive), False, 0.5)
    dropped = cell_outputs(one_node(primitive), True, 0.5)
    zero = (dropped == 0).flatten(1).all(1)
    assert 10 < zero.sum() < 54
    torch.testing.assert_close(dropped[~zero], 2 * kept[~zero])


def test_network_passes_drop_path_on_and_follows_a_change() -> None:
    net = small(drop_path=0.0, auxiliary=False)
    plain = copy.deepcopy(net).train()(images())
    torch.manual_seed(1)
    assert torch.equal(copy.deepcopy(net).train()(images()), plain)
    net.drop_path_prob = 0.5
    torch.manual_seed(1)
    assert not torch.equal(copy.deepcopy(net).train()(images()), plain)
    assert torch.equal(net.eval()(images()), small(auxiliary=False).eval()(images()))
    assert small(drop_path=0.2).drop_path_prob == 0.2


# Gradients


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_gradients_reach_every_parameter(stem: str) -> None:
    net = small(stem=stem, channels=2).train()
    logits, auxiliary = net(images(size=32 if stem == "cifar" else 224))
    (logits.square().sum() + auxiliary.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_only_what_no_output_needs_has_no_gradient() -> None:
    net = small(UNEVEN, auxiliary=False).train()
    net(images()).square().sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    # Node 3 feeds node 4 only through its dilated convolution; every node is used here.
    assert without == set()
    dead = Genotype(UNEVEN.normal, [2], UNEVEN.reduce, [2])
    net = small(dead, auxiliary=False).train()
    net(images()).square().sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    assert without == {
        n for n, _ in net.named_parameters() if n.startswith(("cells.0.primitives.", "cells.0.preprocess1"))
    }


def test_state_dict_round_trip() -> None:
    torch.manual_seed(3)
    first, second = small().eval(), DerivedNetwork(DARTS, 4, 3).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images()), second(images()))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels is 0, expected at least 1"),
        ({"layers": 0}, "layers is 0, expected at least 1"),
        ({"num_classes": -1}, "num_classes is -1, expected at least 1"),
        ({"in_channels": 0}, "in_channels is 0, expected at least 1"),
        ({"stem": "mnist"}, r"unknown stem 'mnist': use 'cifar' \(images of 32×32\) or 'imagenet' \(224×224\)"),
        ({"stem": "imagenet", "channels": 5}, "channels is 5, but the ImageNet stem halves it: choose an even number"),
        ({"drop_path": 1.0}, "drop path probability is 1.0, expected at least 0 and less than 1"),
        ({"drop_path": -0.1}, "drop path probability is -0.1"),
        ({"drop_path": float("nan")}, "drop path probability is nan"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_setting_an_impossible_drop_path_keeps_the_old_one() -> None:
    net = small(drop_path=0.1)
    with pytest.raises(UserError, match="drop path probability is 1"):
        net.drop_path_prob = 1
    assert net.drop_path_prob == 0.1


def test_torch_compile_takes_every_drop_path_with_one_program() -> None:
    programs: list[Any] = []

    def backend(program: Any, inputs: Any) -> Any:
        programs.append(program)
        return program.forward

    net = small(layers=1, channels=2, auxiliary=False).train()
    compiled = torch.compile(net, backend=backend)
    x = images(64, size=8)
    outputs = []
    for probability in (0.0, 0.2, 0.4, 0.9):
        net.drop_path_prob = probability
        outputs.append(compiled(x))
    assert len(programs) == 1
    torch.testing.assert_close(outputs[0], small(layers=1, channels=2, auxiliary=False).train()(x))
    assert all(not torch.equal(output, outputs[0]) for output in outputs[1:])
