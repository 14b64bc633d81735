"""Every operator that has CUDA kernels, backward passes included, against its CPU kernel: random sizes, layouts, types.

Half of the cases are odd and small, or empty, as the fuzz tests draw them; half are as large as in a search.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from gpu_steps.ground import Ground

MOST_FAILURES = 8
ON_THE_CPU = {"color_jitter": 1}  # operator: argument that is read there


def run(ground: Ground) -> None:
    ground.use_tests()
    import torch
    from cuda_emulation import emulation
    from fuzz.operator_cases import SCHEMAS, Draw, fitting
    from torch.utils import _pytree as pytree

    from fastnas import ops  # noqa: F401  (registers the operators)

    device = ground.device
    if ground.rehearse:
        names = emulation.operators()
        kernel: Callable[[str], Any] = emulation.kernel
    else:
        names = tuple(
            name for name in SCHEMAS if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastnas::{name}", "CUDA")
        )

        def kernel(name: str) -> Any:
            return getattr(torch.ops.fastnas, name).default

    class Large(Draw):
        """Sizes of a search. A rehearsal's are smaller: it has milliseconds where a GPU has microseconds."""

        def __init__(self, rng: random.Random) -> None:
            super().__init__(rng)
            self.images = self.individuals * (1 if ground.rehearse else rng.choice([4, 16, 24]))
            self.channels = rng.choice([4, 8] if ground.rehearse else [4, 8, 16, 32, 64])
            self.height = self.width = rng.choice([8] if ground.rehearse else [8, 16, 17, 32])

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device with the same strides, in a copy of the whole memory that it is a part of."""
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return whole.to(device, copy=True).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    most = int(os.environ.get("OPERATOR_CASES", "40" if ground.rehearse else "100000"))
    counts: Counter[str] = Counter()
    number = -1
    while (counts.total() < most or set(names) - set(counts)) and ground.has_time():
        if len(ground.found.get("failures", [])) >= MOST_FAILURES:
            break
        number += 1
        name, arguments = fitting(ground.seed, number, Large if number // len(SCHEMAS) % 2 else Draw)
        if name not in names:
            continue
        place = f"{name}, seed {ground.seed}, case {number}"
        ours = [
            argument if ON_THE_CPU.get(name) == index else pytree.tree_map_only(torch.Tensor, moved, argument)
            for index, argument in enumerate(arguments)
        ]
        try:
            expected = getattr(torch.ops.fastnas, name).default(*arguments)
        except RuntimeError as error:
            print(f"{place}: the CPU refuses it: {error}".splitlines()[0])
            continue
        try:
            result, ours = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (kernel(name)(*ours), ours))
            emulation.assert_as_on_the_cpu(name, result, expected, ours, arguments)
        except (AssertionError, RuntimeError) as error:
            print(f"{place}: {error}")
            ground.add("failures", f"{place}: {str(error).strip().splitlines()[0][:300]}")
            if "CUDA error" in str(error):  # nothing runs in this process any more
                break
        counts[name] += 1
        if number % 25 == 0:
            ground.say(cases=counts.total())
    ground.say(cases=counts.total(), of_each=dict(sorted(counts.items())), unseen=sorted(set(names) - set(counts)))
