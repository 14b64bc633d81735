"""Arguments for every schema of the operators: fitting ones of odd and empty sizes, then changed for the worse.

A case is a schema and its arguments, drawn from (seed, number) alone, so that any of them can be made again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

INTEGERS = [-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 7, 64, 65, 1024, 5000, 50_000, 2**31 - 1, 2**31, 2**59, 2**60 + 1]
INTEGERS += [2**62, 2**63 - 1]
NUMBERS = [math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 2.0, 1e38, -1e300]
NO_INTEGERS: list[Any] = [None, 1.5, "1", 2**63, 2**100, [1], torch.tensor(1), torch.tensor([1.0, 2.0])]
# Why arguments that fit may be refused: no channels, and torch knows no device without tensors.
EXCUSES = ("channel", "multiple", "no tensor arguments")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OTHER_DTYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


class Draw:
    """Sizes and tensors of a case. A size is mostly small and sometimes 0."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.dtype = rng.choice(DTYPES)
        self.table = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.stride = rng.choice([1, 2])
        self.individuals = rng.choice([1, 1, 2, 3])
        self.images = self.individuals * rng.choice([0, 1, 1, 2])
        self.channels = rng.choice([0, 1, 1, 2, 3, 4, 4, 5, 8, 17])
        self.height, self.width = (rng.choice([0, 1, 2, 3, 5, 9]) for _ in range(2))

    @property
    def out_size(self) -> tuple[int, int]:
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def count(self, least: int = 0, most: int = 4) -> int:
        return self.rng.randint(least, most)

    def values(self, *sizes: int) -> Tensor:
        """Weights, statistics or coefficients."""
        return torch.randn(sizes, dtype=self.table)

    def pixels(self, *sizes: int) -> Tensor:
        """Images [N, C, H, W] that are contiguous, channels-last, or some of the channels of wider ones."""
        n, c, h, w = sizes
        kind = self.rng.randrange(4)
        if kind == 0:
            return torch.randn(sizes).to(self.dtype)
        before, behind = (self.rng.choice([0, 1, 4]) if kind > 1 else 0 for _ in range(2))
        return torch.randn(n, h, w, before + c + behind).to(self.dtype)[..., before : before + c].permute(0, 3, 1, 2)

    def many(self, count: int, *sizes: int) -> list[Tensor]:
        return [self.pixels(*sizes) for _ in range(count)]

    def maybe(self, value: Any) -> Any:
        return value if self.rng.random() < 0.5 else None


def _mixed(d: Draw) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
    """outputs, weights, grad, leading sizes."""
    count, population = d.count(1, 5), d.rng.random() < 0.5
    people = d.rng.choice([0, 1, 2, 3]) if population else 1
    leading = [d.rng.choice([1, people]) if population else 1 for _ in range(count)]
    shape = [d.rng.choice([0, 1, 2, 5, 9]) for _ in range(d.rng.choice([0, 1, 2, 4]))]
    outputs = [torch.randn([*([size] if population else []), *shape]).to(d.dtype) for size in leading]
    grad = torch.randn([*([people] if population else []), *shape]).to(d.dtype)
    return outputs, d.values(people, count) if population else d.values(count), grad, leading


def mixed_sum(d: Draw) -> list[Any]:
    outputs, weights, _, _ = _mixed(d)
    return [outputs, weights]


def mixed_sum_grad_outputs(d: Draw) -> list[Any]:
    _, weights, grad, leading = _mixed(d)
    return [grad, weights, leading]


def mixed_sum_grad_weights(d: Draw) -> list[Any]:
    outputs, weights, grad, _ = _mixed(d)
    return [grad, outputs, weights]


def pool(d: Draw) -> list[Any]:
    return [d.pixels(d.images, d.channels, d.height, d.width), d.stride, d.individuals, d.rng.random() < 0.5]


def pool_grad(d: Draw) -> list[Any]:
    size, count, normalized = (d.images, d.channels), d.count(), d.rng.random() < 0.5
    grads, outputs = d.many(count, *size, *d.out_size), d.many(2 * normalized, *size, *d.out_size)
    x, addends = d.pixels(*size, d.height, d.width), d.many(d.count(), *size, d.height, d.width)
    skip = d.maybe(d.values(count, d.channels)) if d.stride == 1 else None
    coeffs = d.values(2, 3, d.channels) if normalized else None
    return [x, grads, d.values(2, count, d.channels), outputs, coeffs, skip, addends, d.stride]


def halve(d: Draw) -> list[Any]:
    return [d.pixels(d.images, d.channels, d.height, d.width), d.rng.randint(0, d.channels)]


def halve_grad(d: Draw) -> list[Any]:
    d.stride, seen = 2, d.rng.randint(0, d.channels)
    grad = d.pixels(d.images, d.channels - seen, *d.out_size)
    size = (d.height, d.width)
    return [grad, d.pixels(d.images, d.channels, *size), d.pixels(d.images, seen, *size)]


def _matrices(d: Draw) -> tuple[list[Tensor], list[Tensor], list[int], int]:
    """inputs, weights, offsets, rows of all weights."""
    parts = [d.rng.choice([0, 1, 3, 4, 16]) for _ in range(d.count(1, 3))]
    rows = [d.rng.choice([0, 1, 3, 4, 16]) for _ in range(d.count(1, 3))]
    inputs = [d.pixels(d.images, channels, d.height, d.width) for channels in parts]
    offsets = [d.rng.randrange(d.stride) for _ in rows]
    return inputs, [d.values(row, sum(parts)) for row in rows], offsets, sum(rows)


def preprocess(d: Draw) -> list[Any]:
    inputs, weights, offsets, _ = _matrices(d)
    return [inputs, weights, offsets, d.stride, d.individuals, d.rng.random() < 0.5]


def preprocess_grad(d: Draw) -> list[Any]:
    inputs, weights, offsets, rows = _matrices(d)
    cut, normalized = d.rng.randint(0, rows), d.rng.random() < 0.5
    grads = [d.pixels(d.images, channels, *d.out_size) for channels in (cut, rows - cut)]
    output = d.pixels(d.images, rows, *d.out_size) if normalized else None
    return [grads, output, d.values(4, rows) if normalized else None, inputs, weights, offsets, d.stride]


def _stages(d: Draw) -> tuple[list[Tensor], Tensor | None, Tensor | None, list[Tensor], list[Tensor], list[int]]:
    count = d.count(1, 5)
    inputs = d.many(d.rng.choice([1, count]), d.images, d.channels, d.height, d.width)
    raw = d.rng.random() < 0.5
    mean, rstd = ((d.values(len(inputs), d.individuals, d.channels) if raw else None) for _ in range(2))
    depthwise = [d.values(d.channels, 1, k, k) for k in d.rng.choices([1, 3, 5, 7], k=count)]
    pointwise = [d.values(d.channels, d.channels, 1, 1) for _ in range(count)]
    return inputs, mean, rstd, depthwise, pointwise, d.rng.choices([1, 2, 3, 9, 40], k=count)


def stage(d: Draw) -> list[Any]:
    return [*_stages(d), d.stride, d.individuals, d.rng.random() < 0.5, d.rng.random() < 0.5]


def stage_grad(d: Draw) -> list[Any]:
    d.individuals = 1
    inputs, mean, rstd, depthwise, pointwise, dilations = _stages(d)
    count, size = len(depthwise), (d.images, d.channels, *d.out_size)
    normalized = d.rng.random() < 0.5
    outputs, coeffs = d.many(count, *size) if normalized else [], d.values(count, 4, d.channels)
    grads, coeffs = d.many(count, *size), coeffs if normalized else None
    return [grads, outputs, coeffs, inputs, mean, rstd, depthwise, pointwise, dilations, d.stride]


def edge_sum(d: Draw) -> list[Any]:
    depths, edges, shared = d.rng.choices([1, 2], k=d.count(0, 3)), d.count(1, 3), d.rng.random() < 0.5
    stages, c = sum(depths), d.channels
    kernels = d.rng.choices([1, 3, 5], k=stages) * edges
    inner = (edges, stages - len(depths), c)
    scales = d.values(d.individuals, edges, len(depths) + 2 + (d.stride == 1), c)
    return [
        d.pixels(d.images, c, d.height, d.width),
        [d.values(c, 1, k, k) for k in kernels],
        [d.values(c, c, 1, 1) for _ in kernels],
        depths,
        d.rng.choices([1, 2, 9, 40], k=stages),
        d.values(*inner),
        d.values(*inner),
        scales * (torch.rand(scales.shape) < 0.7),
        d.values(d.individuals, edges, c),
        d.stride,
        shared,
    ]


def node_sum(d: Draw) -> list[Any]:
    k, e, c, p = d.count(1, 5), d.count(0, 3), d.channels, d.individuals
    size, groups = (d.height, d.width), d.rng.choice([2, 2, 4])
    own = d.images // p

    def images(channels: int) -> Tensor:
        return d.pixels(d.rng.choice([own, d.images]), channels, *size)

    flags = d.maybe([d.rng.randrange(2) for _ in range(k)])
    before = d.maybe(images(groups * c))
    bypass = [images((groups - 1) * c) for _ in range(e)]
    weights = d.maybe(d.values(p, e)) if e else None
    tables, candidates = (d.values(k, p, c), d.values(k, p, c), d.values(p, k)), [images(c) for _ in range(k)]
    all_shared = all(len(each) == own for each in (*candidates, *bypass, *([] if before is None else [before])))
    told = own if all_shared else d.rng.choice([None, own])
    return [candidates, *tables, bypass, weights, p, told, flags, before]


def node_sum_into(d: Draw) -> list[Any]:
    candidates, mean, rstd, weights, bypass, bypass_weights, individuals, _, _, before = node_sum(d)
    behind = [before] if before is not None else [torch.cat([candidates[0][:0], x[:0]], 1) for x in bypass[:1]]
    channels = (behind or candidates)[0].shape[1]
    out = d.pixels(d.images, channels, d.height, d.width)
    images = d.images // d.individuals
    return [out, candidates, mean, rstd, weights, bypass, bypass_weights, individuals, images, before]


def node_sum_grad(d: Draw) -> list[Any]:
    k, e, c, groups = d.count(1, 5), d.count(0, 2), d.channels, d.rng.choice([1, 2, 4])
    size = (d.height, d.width)
    bypass = d.many(e if groups > 1 else 0, d.images, (groups - 1) * c, *size)
    grad, candidates = d.pixels(d.images, groups * c, *size), d.many(k, d.images, c, *size)
    return [grad, candidates, d.values(k, 1, c), d.values(k, 1, c), bypass]


def node_sum_grad_candidates(d: Draw) -> list[Any]:
    k, c = d.count(1, 5), d.channels
    grad, *candidates = d.many(k + 1, d.images, c, d.height, d.width)
    tables = d.values(k, 1, c), d.values(k, 1, c), d.values(1, k), d.values(c), d.values(k, c)
    return [grad, candidates, *tables, [d.rng.randrange(2) for _ in range(k)]]


def bypass_grad(d: Draw) -> list[Any]:
    count, c, groups = d.count(1, 3), d.channels, d.rng.choice([2, 4])
    size = (d.height, d.width)
    grads, addends = (d.many(n, d.images, groups * c, *size) for n in (count, d.count()))
    seen = d.maybe(d.pixels(d.images, c, *size))
    return [seen, grads, d.values(count), addends, c, d.rng.random() < 0.5]


def augment_batch(d: Draw) -> list[Any]:
    images = torch.randint(0, 256, (d.images, d.height, d.width, d.channels), dtype=torch.uint8)
    index = d.maybe(torch.randint(0, max(1, d.images), (d.count() if d.images else 0,)))
    batch = d.images if index is None else len(index)
    draws = d.maybe(torch.randint(-3, 12, (batch, 5), dtype=torch.int32))
    return [images, torch.randn(d.channels, 256).to(d.dtype), index, draws, d.count(), d.count()]


def color_jitter(d: Draw) -> list[Any]:
    images = torch.randint(0, 256, (d.images, d.height, d.width, 3), dtype=torch.uint8)
    return [images, torch.rand(d.images, 4) * torch.tensor([2, 2, 2, 1.0]) - torch.tensor([0, 0, 0, 0.5])]


def philox(d: Draw) -> list[Any]:
    return [torch.randint(-9, 9, (d.rng.choice([0, 1, 5, 300]),)), d.rng.choice(INTEGERS), d.rng.choice(INTEGERS)]


def running_statistics(d: Draw) -> list[Any]:
    batches = [(d.rng.choice([0, 1, 3]), d.channels) for _ in range(d.count())]
    norms = sum(count for count, _ in batches)
    mean, variance = ([torch.rand(d.channels, dtype=d.table) for _ in range(norms)] for _ in range(2))
    tracked = [torch.zeros((), dtype=torch.int64) for _ in range(norms)]
    means, variances = ([torch.rand(batch, dtype=d.table) for batch in batches] for _ in range(2))
    return [mean, variance, tracked, means, variances, [d.rng.choice([0, 1, 2, 50]) for _ in batches], d.rng.random()]


def norm_rows(d: Draw) -> list[Any]:
    individuals, norms, known = d.rng.choice([1, 3]), [d.rng.choice([0, 1, 3]) for _ in range(d.count())], 7
    sizes = [(count, d.rng.choice([1, individuals]), d.channels) for count in norms]
    mean, variance = ([torch.rand(size, dtype=d.table) for size in sizes] for _ in range(2))
    places = [d.rng.randrange(sum(norms)) for _ in range(d.count())] if sum(norms) else []
    rows = d.rng.sample(range(known), len(places))
    return [mean, variance, places, rows, 1e-5, torch.zeros(3, known, individuals, d.channels, dtype=d.table)]


def norm_rows_grad(d: Draw) -> list[Any]:
    rows = d.count()
    sum_dy = d.values(d.channels) if d.rng.random() < 0.5 else d.values(rows, d.channels)
    tables = [d.values(rows, d.channels) for _ in range(4)]
    return [sum_dy, *tables, d.rng.choice([0, 1, 50]), torch.zeros(rows, 4, d.channels, dtype=d.table)]


def pool_tables(d: Draw) -> list[Any]:
    known, nodes = d.count(1, 5), d.count()
    rows = [d.rng.randrange(known) for _ in range(d.count())]
    places = [d.rng.randrange(3 * nodes + 2) for _ in rows]
    return [d.values(known, 4, d.channels), rows, places, nodes]


def empty_images(d: Draw) -> list[Any]:
    return [d.pixels(d.images, d.channels, d.height, d.width), [d.count() for _ in range(4)]]


SCHEMAS: dict[str, Callable[[Draw], list[Any]]] = {
    maker.__name__: maker
    for maker in (
        *(mixed_sum, mixed_sum_grad_outputs, mixed_sum_grad_weights, pool, pool_grad, halve, halve_grad, preprocess),
        *(preprocess_grad, stage, stage_grad, edge_sum, node_sum, node_sum_into, node_sum_grad),
        *(node_sum_grad_candidates, bypass_grad, augment_batch, color_jitter, philox, running_statistics),
        *(norm_rows, norm_rows_grad, pool_tables, empty_images),
    )
}


def fitting(seed: int, number: int, sizes: type[Draw] = Draw) -> tuple[str, list[Any]]:
    """A schema in turn, and arguments that fit it and each other."""
    rng = random.Random(f"{seed}:{number}")
    torch.manual_seed(rng.randrange(2**63))
    name = list(SCHEMAS)[number % len(SCHEMAS)]
    return name, SCHEMAS[name](sizes(rng))


def case(seed: int, number: int) -> tuple[str, list[Any], int]:
    """The same, of which some arguments were changed, and how many."""
    name, arguments = fitting(seed, number)
    rng = random.Random(f"{seed}:{number}:changes")
    changes = rng.choice([0, 0, 1, 1, 1, 2])
    for _ in range(changes):
        place = rng.randrange(len(arguments))
        arguments[place] = changed(rng, arguments[place])
    return name, arguments, changes


def changed(rng: random.Random, value: Any) -> Any:
    """Something else in the place of an argument."""
    if rng.random() < 0.03:
        return rng.choice([None, 1, 1.5, "x", torch.ones(2), [torch.ones(2)], []])
    if isinstance(value, Tensor):
        return changed_tensor(rng, value)
    if isinstance(value, list):
        return changed_list(rng, value)
    if isinstance(value, bool) or value is None:
        return rng.choice([True, False, None, 2, torch.ones(1, 1)])
    if isinstance(value, float):
        return rng.choice(NUMBERS)
    return rng.choice(NO_INTEGERS) if rng.random() < 0.1 else rng.choice(INTEGERS)


def changed_list(rng: random.Random, values: Sequence[Any]) -> list[Any]:
    kind = rng.randrange(5) if values else 5
    if kind < 3:
        place = rng.randrange(len(values))
        return [changed(rng, each) if i == place else each for i, each in enumerate(values)]
    return [[], list(values[1:]), [*values, rng.choice([1, torch.ones(2, 3)])]][kind - 3]


def changed_tensor(rng: random.Random, t: Tensor) -> Tensor:
    """Another size, dtype or layout, or the same with values that are no numbers."""
    sizes, place = list(t.shape), rng.randrange(t.dim()) if t.dim() else None
    kind = rng.randrange(10)
    if math.prod(max(1, size) for size in sizes) > 1 << 16:  # changed once already
        return t
    if place is None or kind == 0:
        return t.expand(rng.choice([1, 2, 3]), *sizes)
    if kind < 3:
        sizes[place] = rng.choice([0, 1, 2, 3, 5, 64])
        return torch.zeros(sizes, dtype=t.dtype)
    if kind == 3:  # of no memory: one value seen as many, or none
        sizes[place] = rng.choice([2**20, 2**31, 2**40, 2**48, 2**61])
        within = [0 if i == (place + 1) % len(sizes) and rng.random() < 0.5 else size for i, size in enumerate(sizes)]
        return _seen_as(t.dtype, within)
    if kind == 4:
        return t.to(rng.choice([*DTYPES, *OTHER_DTYPES]))
    if kind == 5:
        return t.transpose(place, rng.randrange(t.dim()))
    if kind == 6:
        return t.flip(place) if rng.random() < 0.5 else _every_other(t, place)
    if kind == 7:
        return t.select(place, 0) if sizes[place] else t[0:0]
    if kind == 8 and t.is_floating_point():
        return torch.where(torch.rand(t.shape) < 0.3, torch.tensor(rng.choice(NUMBERS), dtype=t.dtype), t)
    return t[..., :1].expand(t.shape) if t.numel() else t.unsqueeze(place)


def _every_other(t: Tensor, place: int) -> Tensor:
    """The same values with others between them in memory."""
    return t.repeat_interleave(2, place).movedim(place, 0)[::2].movedim(0, place)


def _seen_as(dtype: torch.dtype, sizes: Sequence[int]) -> Tensor:
    """Torch refuses what has more than 2⁶³ values."""
    try:
        return torch.zeros(1, dtype=dtype).as_strided(tuple(sizes), (0,) * len(sizes))
    except RuntimeError:
        return torch.zeros(0, dtype=dtype)


def described(value: Any) -> str:
    """An argument on a line of its own."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} of strides {list(value.stride())}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(described(each) for each in value) + "]"
    return repr(value)
