"""What operators need, counted from the shapes of their tensors: bytes, FLOPs and launches; see `roofline`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SECTOR = 32  # bytes: the least that a GPU moves to or from memory


@dataclass(frozen=True)
class Gpu:
    """Public rates: float32 without tensor cores, and memory."""

    name: str
    teraflops: float
    terabytes_per_second: float
    source: str


GPUS = (
    Gpu("A100", 19.5, 2.039, "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM"),
    Gpu("H100", 67.0, 3.35, "NVIDIA H100 Tensor Core GPU datasheet, SXM"),
    Gpu("H200", 67.0, 4.8, "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
    Gpu("B200", 75.0, 7.7, "NVIDIA Blackwell datasheet, HGX B200, per GPU"),
)

# Launches of a call of a fused operator, at most: the kernel, and one that merges the results of its blocks.
LAUNCHES = {
    "fastnas.mixed_sum": 1,
    "fastnas.mixed_sum_grad_outputs": 2,
    "fastnas.mixed_sum_grad_weights": 2,
    "fastnas.augment_batch": 1,
    "fastnas.color_jitter": 1,
    "fastnas.philox": 1,
    "fastnas.edge_sum": 2,
    "fastnas.stage": 3,
    "fastnas.stage_grad": 3,
    "fastnas.pool": 2,
    "fastnas.pool_grad": 1,
    "fastnas.preprocess": 2,
    "fastnas.preprocess_grad": 2,
    "fastnas.node_sum": 1,
    "fastnas.node_sum_into": 1,
    "fastnas.node_sum_grad": 3,  # 2 without weights of bypasses
    "fastnas.node_sum_grad_candidates": 1,
    "fastnas.bypass_grad": 1,
    "fastnas.halve": 1,
    "fastnas.halve_grad": 1,
    "fastnas.norm_rows": 1,
    "fastnas.norm_rows_grad": 1,
    "fastnas.pool_tables": 1,
}
# Operators of torch that launch twice: a fill, then a copy.
TWICE = {"aten.select_backward", "aten.slice_backward", "aten.constant_pad_nd"}
# Tensors that one launch of a foreach operator takes, by the number of its lists of tensors.
FOREACH_TENSORS = {1: 110, 2: 64, 3: 48}
NOTHING = ("empty", "new_empty", "detach", "lift_fresh", "_unsafe_view", "as_strided_", "device")


@dataclass
class Count:
    """What the calls of an operator need."""

    calls: int = 0
    launches: int = 0
    bytes: int = 0
    flops: int = 0
    # One entry for each call: its floor depends on which of the two takes longer.
    each: list[tuple[int, int]] = field(default_factory=list)  # (bytes, FLOPs)

    def add(self, launches: int, nbytes: int, flops: int) -> None:
        self.calls += 1
        self.launches += launches
        self.bytes += nbytes
        self.flops += flops
        self.each.append((nbytes, flops))

    def floor_ms(self, gpu: Gpu) -> float:
        rates = gpu.terabytes_per_second * 1e9, gpu.teraflops * 1e9
        return sum(max(nbytes / rates[0], flops / rates[1]) for nbytes, flops in self.each)

    def times(self, factor: int) -> Count:
        return replace(
            self,
            calls=self.calls * factor,
            launches=self.launches * factor,
            bytes=self.bytes * factor,
            flops=self.flops * factor,
            each=self.each * factor,
        )


Counts = dict[str, Count]


def total(counts: Counts) -> Count:
    result = Count()
    for one in counts.values():
        result.calls += one.calls
        result.launches += one.launches
        result.bytes += one.bytes
        result.flops += one.flops
        result.each += one.each
    return result


class Counting(TorchDispatchMode):
    """Counts every operator that runs within it, in `counts`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = f"{function.namespace}.{function._schema.name.partition('::')[2]}"
        if not _is_free(function):
            launches = _launches(name, args)
            nbytes = _bytes(function, args, kwargs, result)
            self.counts.setdefault(name, Count()).add(launches, nbytes, _flops(name, function, args, kwargs, result))
        return result


def _is_free(function: Any) -> bool:
    """Views and allocations."""
    views = any(one.alias_info is not None and not one.alias_info.is_write for one in function._schema.returns)
    return views or function._schema.name.partition("::")[2].startswith(NOTHING)


def _launches(name: str, args: tuple[Any, ...]) -> int:
    if name in LAUNCHES:
        return LAUNCHES[name]
    if name == "aten.convolution_backward":
        return sum(args[-1])  # the gradients that are asked for
    if name.startswith("aten._foreach"):
        lists = [arg for arg in args if isinstance(arg, (list, tuple))]
        return -(-len(lists[0]) // FOREACH_TENSORS[len(lists)])
    return 2 if name in TWICE else 1


def _tensors(items: Any) -> Iterator[Tensor]:
    return (item for item in pytree.tree_leaves(items) if isinstance(item, Tensor))


def _bytes(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Read and written; what is only written (`Tensor(a!) out`) is not read."""
    overwrites = {"fastnas::node_sum_into": 1}
    arguments = args[overwrites.get(function._schema.name, 0) :]
    written = list(_tensors(result)) or list(_tensors(args[:1]))
    return sum(map(moved_bytes, _tensors((arguments, kwargs)))) + sum(map(moved_bytes, written))


def moved_bytes(tensor: Tensor) -> int:
    """Bytes between memory and chip for all elements of a tensor: whole sectors where it is a part of another one."""
    if tensor.numel() == 0:
        return 0
    # An expanded dimension has stride 0: it is read once.
    dimensions = zip(tensor.stride(), tensor.shape, strict=True)
    sizes = sorted((stride, size) for stride, size in dimensions if size > 1 and stride)
    run = 1  # elements that follow each other
    while sizes and sizes[0][0] == run:
        run *= sizes.pop(0)[1]
    runs = 1
    for _, size in sizes:
        runs *= size
    nbytes = run * tensor.element_size()
    # A run that does not end with a sector shares it with what lies between the runs.
    return runs * (-(-nbytes // SECTOR) * SECTOR if sizes else nbytes)


def _flops(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if name in FLOPS:
        return FLOPS[name](args, result)
    if (known := flop_registry.get(function.overloadpacket)) is not None:
        return known(*args, **kwargs, out_val=result)
    return max((tensor.numel() for tensor in _tensors((args, result))), default=0)


def _convolution_flops(args: tuple[Any, ...], result: Any) -> int:
    return 2 * result.numel() * args[1][0].numel()


def _convolution_backward_flops(args: tuple[Any, ...], _: Any) -> int:
    """Each gradient that is asked for costs as much as the convolution; that of a bias does not count."""
    grad, weight, mask = args[0], args[2], args[-1]
    return sum(mask[:2]) * 2 * grad.numel() * weight[0].numel()


def _pixels(image: Tensor) -> int:
    return image.numel() // image.shape[1]


def _stage_flops(args: tuple[Any, ...], result: Any) -> int:
    """Depthwise and pointwise convolution of every output."""
    depthwise, pointwise = args[3:5]
    return sum(
        2 * _pixels(y) * (taps.numel() + matrix.numel())
        for y, taps, matrix in zip(result[0], depthwise, pointwise, strict=True)
    )


def _stage_grad_flops(args: tuple[Any, ...], _: Any) -> int:
    """The depthwise convolution once more, and two gradients of each."""
    outputs, depthwise, pointwise = args[1], args[6], args[7]
    grads = args[0]
    images = outputs if len(outputs) == len(depthwise) else [grads[0]] * len(depthwise)
    return sum(
        2 * _pixels(y) * (3 * taps.numel() + 2 * matrix.numel())
        for y, taps, matrix in zip(images, depthwise, pointwise, strict=True)
    )


def _preprocess_flops(args: tuple[Any, ...], result: Any) -> int:
    return 2 * _pixels(result[0]) * sum(weight.numel() for weight in args[1])


def _preprocess_grad_flops(args: tuple[Any, ...], _: Any) -> int:
    return 4 * _pixels(args[0][0]) * sum(weight.numel() for weight in args[4])


def _edge_sum_flops(args: tuple[Any, ...], result: Any) -> int:
    """Both convolutions of every stage once for each image of the state, and every term once for each sum."""
    x, depthwise, _, _, _, _, _, scales = args[:8]
    _, channels, height, width = result[0].shape
    taps = sum(weight[0].numel() + channels for weight in depthwise)
    terms = scales.shape[2] * sum(one.numel() for one in result)
    return 2 * (x.shape[0] * channels * height * width * taps + terms)


FLOPS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "aten.convolution": _convolution_flops,
    "aten.convolution_backward": _convolution_backward_flops,
    "fastnas.edge_sum": _edge_sum_flops,
    "fastnas.stage": _stage_flops,
    "fastnas.stage_grad": _stage_grad_flops,
    "fastnas.preprocess": _preprocess_flops,
    "fastnas.preprocess_grad": _preprocess_grad_flops,
    # Every input once, for the sum.
    "fastnas.node_sum": lambda args, _: 2 * sum(y.numel() for y in args[0]),
    "fastnas.node_sum_into": lambda args, _: 2 * sum(y.numel() for y in args[1]),
    "fastnas.node_sum_grad": lambda args, _: 2 * sum(y.numel() for y in args[1]),
    "fastnas.pool": lambda args, result: 18 * result[0].numel(),
    "fastnas.pool_grad": lambda args, _: 18 * args[1][0].numel(),
}
