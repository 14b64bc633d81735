"""Calls the operators with arguments that fit and with ones that do not, in a process of their own.

A call gives a result or is refused by an exception in words. Anything else, a crash, a hang, an exception that says
nothing, a result that depends on strides or on memory that nobody wrote, ends the run with the seed, the case and its
arguments. Where the CUDA kernels are built for the CPU (`make emulation`), they must refuse what the CPU kernels refuse
and give the same results. By hand:

    python tests/fuzz/operators.py --seconds 60 [--seed 7] [--number 42]
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import torch  # noqa: E402
from cuda_emulation import emulation  # noqa: E402
from fuzz.operator_cases import EXCUSES, SCHEMAS, case, described  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from fastnas import ops  # noqa: E402
from fastnas.ops.halve import halve  # noqa: E402
from fastnas.ops.norm_rows import norm_rows, norm_rows_grad  # noqa: E402
from fastnas.ops.pool_tables import pool_tables  # noqa: E402
from fastnas.ops.running_statistics import running_statistics  # noqa: E402

# Of one case: none takes more than a second or two.
PATIENCE_SECONDS = 60
# Of a process. Who asks for more is told so, and no machine begins to swap; half of it may be kept from case to case.
MEMORY_BYTES = 2 << 30
REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, OverflowError)
# Of exceptions that nobody wrote for a user.
NO_WORDS = ("bad_alloc", "originally from", "INTERNAL ASSERT", "vector::", "basic_string", "bad optional", "emulator")
# Differences of results, relative to the largest value and to the largest input: another order of summation.
OF_RESULT, OF_INPUT = 2e-2, 1e-3

# Whose results nobody has written yet.
UNWRITTEN = ("empty_images",)
# The public functions of forward schemas, called as the schemas are.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mixed_sum": ops.mixed_sum,
    "pool": lambda x, stride, individuals, statistics: ops.pool(
        x, stride, individuals=individuals, statistics=statistics
    ),
    "halve": halve,
    "preprocess": lambda inputs, weights, offsets, stride, individuals, statistics: ops.preprocess(
        inputs, weights, offsets, stride, individuals=individuals, statistics=statistics
    ),
    "stage": lambda inputs, mean, rstd, depthwise, pointwise, dilations, stride, individuals, statistics, normalized: (
        ops.stage(
            inputs,
            depthwise,
            pointwise,
            dilations,
            stride,
            mean,
            rstd,
            normalized=normalized,
            individuals=individuals,
            statistics=statistics,
        )
    ),
    "edge_sum": ops.edge_sum,
    "node_sum": lambda y, mean, rstd, weights, bypass, bypass_weights, individuals, images, normalized, before: (
        ops.node_sum(
            y,
            mean,
            rstd,
            weights,
            bypass,
            bypass_weights,
            individuals=individuals,
            images=images,
            normalized=normalized,
            prev_node=before,
        )
    ),
    "augment_batch": lambda images, table, index, draws, padding, cutout: ops.augment_batch(
        images, table, index=index, draws=draws, padding=padding, cutout=cutout
    ),
    "color_jitter": ops.color_jitter,
    "philox": ops.philox,
    "running_statistics": running_statistics,
    "norm_rows": norm_rows,
    "norm_rows_grad": norm_rows_grad,
    "pool_tables": pool_tables,
}


def run(deadline: float, seed: int) -> dict[str, int]:
    """Cases of a seed until `deadline`, of time.monotonic(); how many gave a "result" and how many were "refused".

    Raises:
        AssertionError: a case that did neither, with everything that repeats it.
    """
    counts = Counter({"result": 0, "refused": 0})
    number: int | None = 0
    while number is not None:
        number = _run_process(deadline, seed, number, counts)
    return dict(counts)


def _run_process(deadline: float, seed: int, first: int, counts: Counter[str]) -> int | None:
    """The cases from `first` on, as many as a process has memory for; the next one, if there is time for more."""
    seconds = max(0.0, deadline - time.monotonic())
    command = [sys.executable, __file__, "--worker", str(seconds), "--seed", str(seed), "--number", str(first)]
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads would fill up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as worker,
    ):
        number, goes_on = first, False
        for line in _lines(worker):
            word, _, rest = line.partition(" ")
            if word in ("case", "again"):
                number, goes_on = int(rest), word == "again"
            elif word in counts:
                counts[word] += 1
            else:
                worker.kill()
                raise AssertionError(_report(seed, number, line))
        if worker.wait() != 0:
            errors.seek(0)
            what = f"the process ended with {worker.returncode}: {errors.read()[-2000:]}"
            raise AssertionError(_report(seed, number, what))
    return number if goes_on else None


def _lines(worker: subprocess.Popen[bytes]) -> Iterator[str]:
    """What the worker says, as long as it says anything; it is ended where a case takes too long."""
    assert worker.stdout is not None
    unfinished = b""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(PATIENCE_SECONDS):
                worker.kill()
                yield f"hang: no answer in {PATIENCE_SECONDS} seconds"
                return
            # Not readline(), which keeps further lines where select() does not see them.
            said = os.read(worker.stdout.fileno(), 1 << 16)
            if not said:
                return
            *lines, unfinished = (unfinished + said).split(b"\n")
            yield from (line.decode() for line in lines)


def _report(seed: int, number: int, what: str) -> str:
    again = f"python tests/fuzz/operators.py --seed {seed} --number {number}"
    name, arguments, _ = case(seed, number)
    lines = "\n  ".join(described(argument) for argument in arguments)
    return f"{what}\nof fastnas::{name}, {again}\n  {lines}"


# --- in the process of its own ---------------------------------------------------------------------------------------


def work(seconds: float, seed: int, number: int) -> None:
    """Says "case <number>" before each case and its outcome behind it; "again <number>" where another process must go
    on, since this one's memory is kept for further cases."""
    end = time.monotonic() + seconds
    begin = _prepare()
    least = number + len(SCHEMAS) if number == 0 else number
    while time.monotonic() < end or number < least:
        if _address_bytes() - begin > MEMORY_BYTES // 2:
            print(f"again {number}", flush=True)
            return
        print(f"case {number}", flush=True)
        print(outcome(seed, number).replace("\n", " | "), flush=True)
        number += 1


def _prepare() -> int:
    """Sets the process up; how much address space it takes."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch fills what nobody wrote with NaN
    warnings.simplefilter("ignore")
    _emulated("pool")
    begin = _address_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (begin + MEMORY_BYTES, begin + MEMORY_BYTES))
    return begin


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def outcome(seed: int, number: int) -> str:
    """ "result", "refused", or what is wrong."""
    name, arguments, changes = case(seed, number)
    finite = name not in UNWRITTEN and all(_is_moderate(leaf) for leaf in pytree.tree_leaves(arguments))
    scale = max((_largest(leaf) for leaf in pytree.tree_leaves(arguments)), default=0.0) if finite else 0.0
    try:
        operator = getattr(torch.ops.fastnas, name).default
        result, problem = attempt(operator, arguments)
        if problem is not None:
            if changes == 0 and not any(excuse in problem for excuse in EXCUSES):
                return f"fitting arguments are refused: {problem}"
        elif finite and not _all_finite(result):
            return "NaN of finite arguments: memory that nobody wrote?"
        for kind, other, given in (
            ("emulated", _emulated(name), arguments),
            ("contiguous", operator if problem is None else None, _all_contiguous(name, arguments)),
        ):
            if other is None or _depends(problem):
                continue
            result_of_other, problem_of_other = attempt(other, given)
            if _depends(problem_of_other):
                continue
            if (problem is None) != (problem_of_other is None):
                return f"{problem or 'a result'}, but {kind}: {problem_of_other or 'a result'}"
            if problem is None and (difference := _difference(result, result_of_other, scale, finite)):
                return f"{kind}: {difference}"
        if name in FUNCTIONS:
            trouble = _differentiate(FUNCTIONS[name], arguments, finite)
            if trouble and problem is None and not _depends(trouble):
                return f"the function: {trouble}"
    except NotAnError as error:
        return str(error)
    return "result" if problem is None else "refused"


class NotAnError(Exception):
    """An exception that says nothing to whoever called."""


def attempt(function: Callable[..., Any], arguments: list[Any]) -> tuple[Any, str | None]:
    """What it gives (of one that writes, what it has written), or why it refuses. Arguments stay as they are."""
    own = pytree.tree_map(_copy, arguments)
    try:
        result = function(*own)
    except REFUSALS as error:
        message = str(error)
        if not message.strip() or any(word in message for word in NO_WORDS):
            raise NotAnError(f"not in words: {type(error).__name__}: {message[:500]}") from None
        return None, f"{type(error).__name__}: {message[:300]}"
    except Exception as error:
        raise NotAnError(f"not an error of ours: {type(error).__name__}: {str(error)[:500]}") from None
    return own if result is None else result, None


def _differentiate(function: Callable[..., Any], arguments: list[Any], finite: bool) -> str | None:
    """Calls a function of `fastnas.ops` with inputs that need gradients, and asks for them."""
    own = pytree.tree_map(_leaf, pytree.tree_map(_copy, arguments))
    leaves = [each for each in pytree.tree_leaves(own) if isinstance(each, Tensor) and each.requires_grad]
    if function is running_statistics:
        leaves, own = [], arguments
    result, problem = attempt_in_place(function, own)
    if problem is not None:
        return problem
    results = [each for each in pytree.tree_leaves(result) if isinstance(each, Tensor) and each.requires_grad]
    if not results or not leaves:
        return None
    grads, problem = attempt_in_place(
        lambda: torch.autograd.grad([each.double().sum() for each in results], leaves, allow_unused=True), []
    )
    if problem is not None:
        return None if "individual" in problem or "finite" in problem else problem
    known = [grad for grad in grads if grad is not None]
    return "NaN gradients of finite arguments" if finite and not _all_finite(known) else None


def attempt_in_place(function: Callable[..., Any], arguments: list[Any]) -> tuple[Any, str | None]:
    try:
        return function(*arguments), None
    except REFUSALS as error:
        if not str(error).strip() or any(word in str(error) for word in NO_WORDS):
            raise NotAnError(f"not in words: {type(error).__name__}: {str(error)[:500]}") from None
        return None, f"{type(error).__name__}: {str(error)[:300]}"
    except Exception as error:
        raise NotAnError(f"not an error of ours: {type(error).__name__}: {str(error)[:500]}") from None


def _emulated(name: str) -> Callable[..., Any] | None:
    if not emulation.library_path().is_file() or name not in emulation.operators():
        return None
    operator: Callable[..., Any] = emulation.kernel(name)
    return operator


def _depends(problem: str | None) -> bool:
    """On memory, which a copy may need, or on values that a GPU would have to be waited for."""
    return problem is not None and any(word in problem for word in ("memory", "values", "index["))


def _copy(leaf: Any) -> Any:
    """With the same strides; what has fewer values in memory than it shows is not written to."""
    if not isinstance(leaf, Tensor) or leaf.numel() > leaf.untyped_storage().nbytes() // max(1, leaf.element_size()):
        return leaf
    return leaf.clone()


def _all_contiguous(name: str, arguments: list[Any]) -> list[Any]:
    def contiguous(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or math.prod(max(1, size) for size in leaf.shape) > 1 << 20:
            return leaf
        return leaf.clone(memory_format=torch.contiguous_format)

    kept = 1 if name == "node_sum_into" else 0  # what is written to must be channels-last
    return [*arguments[:kept], *pytree.tree_map(contiguous, arguments[kept:])]


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_moderate(leaf: Any) -> bool:
    if isinstance(leaf, float):
        return abs(leaf) < 100
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() == 0:
        return True
    return leaf.numel() <= 1 << 24 and leaf.element_size() > 1 and bool((leaf.abs() < 100).all())


def _largest(leaf: Any) -> float:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() == 0:
        return 0.0
    return float(leaf.abs().max())


def _all_finite(results: Any) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    # Types of one byte cannot say it themselves.
    return all(bool((leaf.float() if leaf.element_size() == 1 else leaf).isfinite().all()) for leaf in leaves)


def _difference(one: Any, other: Any, scale: float, finite: bool) -> str | None:
    left, right = ([leaf for leaf in pytree.tree_leaves(each) if isinstance(leaf, Tensor)] for each in (one, other))
    for place, (a, b) in enumerate(zip(left, right, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {place} is {described(a)}, here {described(b)}"
        if not finite or a.numel() == 0 or a.numel() > 1 << 24:
            continue
        a, b = a.double(), b.double()
        allowed = OF_RESULT * max(float(a.abs().max()), float(b.abs().max())) + OF_INPUT * (1 + scale) ** 2
        if (worst := float((a - b).abs().max())) > allowed:
            return f"result {place} differs by {worst}, allowed is {allowed}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--number", type=int, help="this case only, in this process")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given.worker, given.seed, given.number or 0)
    elif given.number is not None:
        name, arguments, changes = case(given.seed, given.number)
        print(f"fastnas::{name}, {changes} changes", *map(described, arguments), sep="\n  ", flush=True)
        _prepare()
        print(outcome(given.seed, given.number))
    else:
        print(f"seed {given.seed}")
        print(run(time.monotonic() + given.seconds, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
