"""Runs the CUDA kernels on the CPU in place of the CPU kernels, and compares the two at every call.

Within ``emulated(order)`` every operator of ``torch.ops.fastnas`` that has a CUDA implementation runs it, compiled for
the CPU, on tensors of the CPU: checks, allocation, launchers and kernels are the package's own. Its results must be
those of the CPU kernel, so any test that calls an operator tests its CUDA kernels; tests ask for the fixture
``backend`` (tests/conftest.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

# `make emulation` builds this one; FASTNAS_EMULATED names another, built with a sanitizer.
LIBRARY = Path(__file__).resolve().parents[2] / "build" / "emulate" / "lib" / "emulated_plain.so"
ORDERS = ("forward", "reverse", "shuffled")
# KiB of shared memory that a block may have on cards of compute capability 8.6, 8.9 and 12.0; of 8.0; of 9.0 and 10.0.
SHARED_KIB = (99, 163, 227)

# dtype → largest difference from the CPU kernel, relative to the largest value of a result: a tensor, or all tensors of
# a list, of which one may have a single value that cancels to almost nothing. Both accumulate in float32 (float64), in
# another order; half precision adds the last rounding.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# A result that consists of rounding errors alone has no scale of its own: this share of the largest input is taken
# instead. It is largest for Σ G·ŷ, in which terms as large as 1/σ cancel.
CANCELLED, OF_DOTS = 0.1, {"node_sum_grad": 1.0}


def library_path() -> Path:
    return Path(os.environ.get("FASTNAS_EMULATED", LIBRARY))


@cache
def _library_handle() -> ctypes.CDLL:
    torch.ops.load_library(library_path())
    handle = ctypes.CDLL(str(library_path()))
    handle.emulated_take_launches.restype = ctypes.c_char_p
    return handle


@cache
def operators() -> tuple[str, ...]:
    """The operators that have CUDA kernels, backward passes included: "mixed_sum", "mixed_sum_grad_outputs", …"""
    _library_handle()
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    ours = (name.partition("::") for name in registered)
    return tuple(sorted(name for namespace, _, name in ours if namespace == "fastnas_emulated"))


def take_launches() -> Counter[str]:
    """How often each kernel was launched since the last call."""
    lines = _library_handle().emulated_take_launches().decode().splitlines()
    return Counter({name: int(count) for name, count in (line.split() for line in lines)})


@contextlib.contextmanager
def emulated(order: str = "forward", seed: int = 0, shared_kib: int = 163) -> Iterator[None]:
    """Operators on CPU tensors run their CUDA kernels, threads and blocks in this order, one of ORDERS, on a card that
    lets a block have this much shared memory.

    Raises:
        AssertionError: from an operator whose kernels disagree with the CPU kernel.
        RuntimeError: from an operator whose kernel does what a GPU leaves undefined, naming thread and line.
    """
    handle = _library_handle()
    handle.emulated_set_order(ORDERS.index(order), ctypes.c_uint64(seed))
    handle.emulated_set_shared_kib(ctypes.c_uint64(shared_kib))
    try:
        with _replaced(_compared):
            yield
    finally:
        handle.emulated_set_shared_kib(ctypes.c_uint64(163))


@contextlib.contextmanager
def counting() -> Iterator[dict[str, list[Counter[str]]]]:
    """Collects what every call of an operator launches: {operator: [{kernel: launches}, ...]}.

    Kernels are launched but not run, so results hold nothing.
    """
    handle = _library_handle()
    calls: dict[str, list[Counter[str]]] = {}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            take_launches()
            result = kernel(name)(*args, **kwargs)
            calls.setdefault(name, []).append(take_launches())
            return result

        return call

    handle.emulated_set_dry(True)
    try:
        with _replaced(counted):
            yield calls
    finally:
        handle.emulated_set_dry(False)


@contextlib.contextmanager
def _replaced(replacement: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """Within it, each operator that has CUDA kernels is `replacement(name)` for tensors of the CPU."""
    library = torch.library.Library("fastnas", "IMPL")
    try:
        for name in operators():
            library.impl(name, replacement(name), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def kernel(name: str) -> Any:
    """The operator with its CUDA implementation, for tensors of the CPU."""
    return getattr(torch.ops.fastnas_emulated, name).default


def _compared(name: str) -> Callable[..., Any]:
    """The operator's CUDA side, which also runs its CPU side and compares results and arguments that are written."""
    emulated_kernel = kernel(name)
    cpu = torch.library.get_kernel(f"fastnas::{name}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    written = _written(name)

    def both(*args: Any, **kwargs: Any) -> Any:
        expected_args = [arg.clone() if index in written else arg for index, arg in enumerate(args)]
        ours = emulated_kernel(*args, **kwargs)
        expected = cpu.call_boxed(keys, *expected_args, **kwargs)
        assert_as_on_the_cpu(name, ours, expected, [*args, kwargs], [*expected_args, kwargs])
        return ours

    return both


def _written(name: str) -> list[int]:
    """The arguments that an operator writes to."""
    arguments = getattr(torch.ops.fastnas, name).default._schema.arguments
    return [index for index, argument in enumerate(arguments) if argument.is_write]


def assert_as_on_the_cpu(
    name: str, ours: Any, expected: Any, args: Sequence[Any], expected_args: Sequence[Any]
) -> None:
    """Compares results of CUDA kernels, and the arguments that their operator writes to, with those of its CPU kernel.

    Raises:
        AssertionError: they differ by more than rounding can; the message names the operator and the result.
    """
    leaves = pytree.tree_leaves(list(expected_args))
    floor = OF_DOTS.get(name, CANCELLED) * max((_largest(leaf) for leaf in leaves), default=0.0)
    for index in _written(name):
        scale = max(_largest(expected_args[index]), floor)
        _assert_same(f"{name}, argument {index}", args[index].clone(), expected_args[index].clone(), scale)
    for index, (result, wanted) in enumerate(zip(_tuple(ours), _tuple(expected), strict=True)):
        tensors = pytree.tree_leaves(wanted)
        scale = max((_largest(tensor) for tensor in tensors), default=0.0)
        for place, (one, other) in enumerate(zip(pytree.tree_leaves(result), tensors, strict=True)):
            _assert_same(f"{name}, result {index}[{place}]", one, other, max(scale, floor))


def _tuple(results: Any) -> tuple[Any, ...]:
    return () if results is None else results if isinstance(results, tuple) else (results,)


def _largest(value: Any) -> float:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    finite = value[value.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _assert_same(what: str, actual: Tensor, expected: Tensor, scale: float) -> None:
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, on the CPU {tuple(expected.shape)}"
    assert actual.stride() == expected.stride(), f"{what}: strides {actual.stride()}, on the CPU {expected.stride()}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, on the CPU {expected.dtype}"
    tolerance = TOLERANCE.get(expected.dtype, 0.0) * scale

    def explain(difference: str) -> str:
        return f"{what} differs from the CPU's: {difference}"

    # Infinities of both signs are NaN when they meet in a sum, which depends on its order.
    lost = ~actual.isfinite() & ~expected.isfinite() & (actual.isnan() | expected.isnan())
    actual, expected = (tensor.masked_fill(lost, 0) for tensor in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=explain)
