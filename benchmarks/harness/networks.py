"""The networks of the end-to-end benchmarks: their sizes, how each contender holds them, and the work in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.clock import Run
from benchmarks.harness.timing import CHANNELS_LAST, COMPILED, FASTNAS, FASTNAS_GRAPHED, GRAPHED, PLAIN
from fastnas import onednn
from fastnas.engine.cuda_graph import WARM_UP, CudaRecorder, Graphs
from fastnas.errors import UserError
from fastnas.nn import Supernet
from fastnas.nn.batch_norm import BatchNorm

# space: partial channels k, the pairs that papers search with
SPACES = {"egnas": 4, "darts": 1}
CLASSES = 10


@dataclass(frozen=True)
class Options:
    """How large the end-to-end benchmarks are. None stands for a benchmark's own choice."""

    batch: int | None = None  # images
    channels: int = 16
    layers: int = 8
    size: int = 32  # pixels a side
    space: str | None = None  # one of SPACES; None for all that a benchmark has
    individuals: int | None = None  # of a population
    timed: int = 3  # individuals that the baseline of `population` is timed with
    images: int | None = None  # of `search_epoch` and of every set of `data`
    compile: bool = False  # let torch.compile take part in `cell`
    memory: bool = True  # measure peak memory, too

    def spaces(self) -> list[str]:
        return list(SPACES) if self.space is None else [self.space]


def contenders(device: torch.device) -> tuple[str, ...]:
    """The contenders; on a GPU also those whose kernels are recorded in a CUDA graph."""
    graphed = (GRAPHED, FASTNAS_GRAPHED) if device.type == "cuda" else ()
    return (PLAIN, CHANNELS_LAST, FASTNAS, *graphed)


def unrecorded(device: torch.device) -> tuple[str, ...]:
    """Those of them whose peak memory is meaningful: a recorded CUDA graph never frees its memory."""
    return tuple(name for name in contenders(device) if name not in (GRAPHED, FASTNAS_GRAPHED))


def is_fused(contender: str) -> bool:
    return contender in (FASTNAS, FASTNAS_GRAPHED)


def as_launched(run: Run, contender: str, device: torch.device) -> Run:
    """The call as the contender launches it: as a CUDA graph, recorded already, if it uses one."""
    if contender not in (GRAPHED, FASTNAS_GRAPHED):
        return run
    graphs = Graphs(CudaRecorder(device))

    def replay() -> Any:
        return graphs.call("run", run)

    for _ in range(WARM_UP + 1):
        replay()
    if graphs.recorder is None:
        raise UserError(f"{contender}: the call could not be recorded as a CUDA graph; the warning says why.")
    return replay


def describe(space: str, batch: int, options: Options) -> str:
    """A case in words: space, partial channels, channels, cells, images."""
    network = f"{space} k={SPACES[space]} C={options.channels} {options.layers} cells"
    return f"{network}, {batch}×{options.size}×{options.size}"


def build(space: str, contender: str, device: torch.device, channels: int, layers: int) -> Supernet:
    """The supernet as a contender runs it. All contenders get the same weights, in this process and in others."""
    torch.manual_seed(0)
    network = Supernet(
        space,
        channels=channels,
        layers=layers,
        num_classes=CLASSES,
        partial_channels=SPACES[space],
        backend="fused" if is_fused(contender) else "reference",
    )
    return in_format(network.to(device), contender)


def in_format(item: Any, contender: str) -> Any:
    """A network or a tensor of images as a contender wants it in memory."""
    if isinstance(item, nn.Module):
        onednn.guard(item)  # torch's own channels-last convolutions may fail; see there
    rows = contender in (PLAIN, COMPILED)
    return item.to(memory_format=torch.contiguous_format if rows else torch.channels_last)


def draw_images(batch: int, size: int, contender: str, device: torch.device) -> Tensor:
    """[batch, 3, size, size], the same for all contenders."""
    generator = torch.Generator().manual_seed(1)
    return in_format(torch.randn(batch, 3, size, size, generator=generator).to(device), contender)


def with_running_statistics(network: Supernet, images: Tensor) -> Supernet:
    """Gives `network` the running statistics of one batch, as after long training. With the initial ones an evaluation
    of untrained weights may shrink activations to subnormal numbers, whose arithmetic is slow on CPUs. A copy in plain
    torch computes them, so that the contender's own memory stays untouched until it is measured."""
    space, layers = network.space.name, len(network.cells)
    teacher = build(space, CHANNELS_LAST, images.device, network.channels, layers)
    for module in teacher.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        teacher(images)
    network.load_state_dict(teacher.state_dict())
    return network


@dataclass(frozen=True)
class Work:
    """What a forward pass of some images through a supernet cannot avoid, by the names of modules.

    Traffic counts the states: the stem's output, the preprocessed inputs and the nodes of every cell. Normalisation
    by batch statistics forces them through memory, as each needs the whole batch before it can be used; what lies
    between two states could stay in cache.
    """

    macs: dict[str, int]  # of convolutions and linear layers
    states: dict[str, int]  # bytes
    parameters: dict[str, int]  # bytes
    inputs: int  # bytes
    edges: tuple[tuple[int, int], ...]  # (source, node) of every edge of a cell

    def within(self, module: str, inputs: int) -> Work:
        """The part inside one module, which reads `inputs` bytes of inputs."""

        def part(table: dict[str, int]) -> dict[str, int]:
            return {name: value for name, value in table.items() if f"{name}.".startswith(f"{module}.")}

        return Work(part(self.macs), part(self.states), part(self.parameters), inputs, self.edges)

    def flops(self, mode: str) -> int:
        """FLOPs of the forward pass, or of "both" passes: each gradient of a product costs as much as the product.
        The images have none."""
        macs = sum(self.macs.values())
        stem = sum(value for name, value in self.macs.items() if name.startswith("stem"))
        return 2 * (macs if mode == "forward" else 3 * macs - stem)

    def bytes(self, mode: str) -> int:
        """A state is written and read; backward reads it again, and writes and reads its gradient. Parameters are read,
        in backward again, and their gradient is written. The inputs are read in both passes."""
        states, parameters = sum(self.states.values()), sum(self.parameters.values())
        if mode == "forward":
            return self.inputs + parameters + 2 * states
        return 2 * self.inputs + 3 * parameters + 5 * states

    def population_flops(self, individuals: int) -> int:
        """Of a population on the same images. What does not depend on α is needed once: the stem, the candidates that
        read the inputs of the first cell, and those of the second cell that read its first input."""
        return 2 * self._of_population(self.macs, individuals)

    def population_bytes(self, individuals: int, bn_mode: str) -> int:
        """Batch statistics force the states of each individual through memory; with running statistics an image can go
        through the whole network in cache."""
        states = 2 * self._of_population(self.states, individuals) if bn_mode == "batch" else 0
        return self.inputs + sum(self.parameters.values()) + states

    def _of_population(self, table: dict[str, int], individuals: int) -> int:
        return sum(value * (1 if self._is_shared(name) else individuals) for name, value in table.items())

    def _is_shared(self, name: str) -> bool:
        match name.split("."):
            case ["stem", *_] | ["cells", "0", "preprocess0" | "preprocess1", *_] | ["cells", "1", "preprocess0", *_]:
                return True
            case ["cells", "0" | "1" as cell, "edges", edge, *_]:
                return self.edges[int(edge)][0] < 2 - int(cell)
        return False


@functools.cache
def work(space: str, channels: int, layers: int, batch: int, size: int, parts: int | None = None) -> Work:
    """Counted by running the reference network on the meta device, which computes nothing."""
    with torch.device("meta"):
        network = Supernet(
            space,
            channels=channels,
            layers=layers,
            num_classes=CLASSES,
            partial_channels=parts or SPACES[space],
            backend="reference",
        )
    return work_of(network, batch, size, network.space.edges)


def work_of(network: nn.Module, batch: int, size: int, edges: tuple[tuple[int, int], ...] = ()) -> Work:
    """Of any network on the meta device whose modules are named as those of `Supernet` and `DerivedNetwork`."""
    macs: dict[str, int] = {}
    states: dict[str, int] = {}

    def count(name: str, module: Any, output: Tensor) -> None:
        macs[name] = output.numel() * module.weight[0].numel()

    def hold(name: str, output: Tensor | tuple[Tensor, Tensor]) -> None:
        # Both states of the CIFAR stem are one tensor.
        tensors = {id(tensor): tensor for tensor in (output if isinstance(output, tuple) else (output,))}
        states[name] = sum(tensor.nbytes for tensor in tensors.values())

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, args, output, name=name: count(name, module, output))
        if is_state(name.split(".")):
            module.register_forward_hook(lambda module, args, output, name=name: hold(name, output))
    with torch.no_grad():
        network(torch.empty(batch, 3, size, size, device="meta"))
    parameters = {name: parameter.nbytes for name, parameter in network.named_parameters()}
    return Work(macs, states, parameters, 4 * batch * 3 * size**2, edges)


def is_state(name: Sequence[str]) -> bool:
    """Whether the output of a module, given the parts of its name, is a state."""
    match name:
        case ["stem"] | ["cells", _] | ["cells", _, "preprocess0" | "preprocess1"]:
            return True
    return False
