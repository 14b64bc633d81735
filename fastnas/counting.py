"""Sizes of networks as the papers report them: parameters and multiply-accumulate operations (MACs), exact integers."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastnas.errors import UserError

Rule = Literal["macs", "flops_counter"]
Cost = Callable[[Any, Tensor, Tensor], int]  # (module, its input, its output) → operations
CostTable = tuple[tuple[tuple[type[nn.Module], ...], Cost], ...]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


def _conv(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * math.prod(module.weight.shape[1:])  # weight [out, in/groups, *kernel]


def _conv_transposed(module: Any, x: Tensor, y: Tensor) -> int:
    return x.numel() * math.prod(module.weight.shape[1:])  # weight [in, out/groups, *kernel]


def _linear(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel() * module.in_features


def _bias(module: Any, x: Tensor, y: Tensor) -> int:
    return 0 if module.bias is None else y.numel()


def _norm(module: Any, x: Tensor, y: Tensor) -> int:
    return x.numel() * (2 if module.affine else 1)


def _outputs(module: Any, x: Tensor, y: Tensor) -> int:
    return y.numel()


def _inputs(module: Any, x: Tensor, y: Tensor) -> int:
    return x.numel()


MACS: CostTable = ((_CONVS, _conv), (_TRANSPOSED_CONVS, _conv_transposed), ((nn.Linear,), _linear))
_COSTS: dict[Rule, CostTable] = {
    "macs": MACS,
    "flops_counter": (
        *MACS,
        ((*_CONVS, *_TRANSPOSED_CONVS), _bias),
        (_NORMS, _norm),
        (_ACTIVATIONS, _outputs),
        (_POOLS, _inputs),
    ),
}


def count_parameters(module: nn.Module, *, auxiliary: bool = False) -> int:
    """Number of learnable parameters, frozen ones included; a shared parameter counts once.

    The architecture parameters of a supernet (its attribute `alphas`) are never counted: they are not weights.

    Args:
        module: any module, on any device.
        auxiliary: also count the `auxiliary_head`, which papers leave out because it is used in training only.
    """
    skipped = {"alphas"} if auxiliary else {"alphas", "auxiliary_head"}
    return sum(
        parameter.numel() for name, parameter in module.named_parameters() if skipped.isdisjoint(name.split("."))
    )


def count_macs(module: nn.Module, input_size: Sequence[int], rule: Rule = "macs") -> int:
    """Number of operations of one forward pass in evaluation mode.

    A copy of `module` without data runs on the meta device, so this takes no memory and leaves `module` unchanged. The
    count is the sum over the submodules that run; what a `forward` computes with functions (`F.conv2d`) is not counted.

    Args:
        module: takes one floating-point tensor.
        input_size: `(C, H, W)` of one image, or `(N, C, H, W)` of a batch, whose images are counted together.
        rule: `"macs"` counts the multiply-accumulates of convolutions and linear layers, without their biases: what
            papers call MACs, multiply-adds or, often, FLOPs.
            `"flops_counter"` is the rule of the tool flops-counter.pytorch (V. Sovrasov), behind the numbers that
            P-DARTS and PC-DARTS print: `"macs"`, one operation for each output element of a convolution with bias,
            two for each element of a BatchNorm (one without affine parameters), one for each output element of a
            ReLU and one for each input element of a pool.

    Raises:
        UserError: unknown `rule`, or an `input_size` that is neither of the two.
    """
    if rule not in _COSTS:
        raise UserError(f"unknown counting rule {rule!r}: use 'macs' or 'flops_counter'.")
    return sum_costs(module, input_size, _COSTS[rule])


def sum_costs(module: nn.Module, input_size: Sequence[int], costs: CostTable) -> int:
    """The sum of a cost over the submodules that run in one forward pass in evaluation mode, as in `count_macs`.

    Args:
        module, input_size: see `count_macs`.
        costs: (classes of modules, cost) pairs; the cost is a function of the module, its input and its output. A
            module counts once for each pair whose classes it is of.

    Raises:
        UserError: an `input_size` that is neither of the two.
    """
    sizes = tuple(input_size)
    if len(sizes) not in (3, 4) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(f"input_size is {sizes}, expected positive integers (C, H, W) or (N, C, H, W).")

    total = 0

    def add(cost: Cost, submodule: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        nonlocal total
        x = args[0] if args else next(iter(kwargs.values()))
        total += cost(submodule, x, output)

    replica = _meta_copy(module).eval()
    for submodule in replica.modules():
        for kinds, cost in costs:
            if isinstance(submodule, kinds):
                hook = functools.partial(add, cost)
                submodule.register_forward_hook(hook, with_kwargs=True)
    dtype = next((p.dtype for p in replica.parameters() if p.is_floating_point()), None)
    with torch.no_grad():
        replica(torch.empty(sizes if len(sizes) == 4 else (1, *sizes), dtype=dtype, device="meta"))  # [N, C, H, W]
    return total


def _meta_copy(module: nn.Module) -> nn.Module:
    """A deep copy on the meta device. `deepcopy` finds a stand-in for every tensor in its memo, so none is copied."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(module, memo)
