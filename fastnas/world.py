"""One run in several processes: who a process is among them, and what they add up, share and agree on.

`torchrun` starts the processes, `joined` connects them, and torch.distributed does the rest. A process on its own is
`ALONE`, for which nothing here costs anything or changes a bit.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastnas.errors import UserError
from fastnas.heartbeat import Heartbeat

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""By which `torchrun` tells a process who it is."""
LONGEST_WAIT = timedelta(days=7)
"""For the others, in a collective: they may train an architecture meanwhile. Whether they live, the heartbeat tells."""
LONGEST_START = timedelta(minutes=5)
"""Until all processes have found each other."""
LOST = "this one stops, too. Start all of them again with --resume and the run directory: they continue exactly"

Item = TypeVar("Item")
Result = TypeVar("Result")


class LostProcessError(UserError):
    """Another process of the run has ended."""


class ToldElsewhereError(UserError):
    """What has happened is told by another process of the run."""


class World:
    """The processes of a run, as one of them sees them.

    All processes make the same calls in the same order. Results are equal in all of them to the last bit.

    Args:
        rank: of this process, from 0; process 0 leads: it writes files and prints.
        size: how many there are.
        local_rank: of this process among those of its machine, from 0.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.apart = False
        """Whether this process does something that the others do not do: within `spread`."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    # --- numbers ---

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor of equal shape in all processes, in place."""
        if self.size > 1:
            with self._meeting():
                dist.all_reduce(tensor)
        return tensor

    def means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the processes of each tensor, by one all-reduce of all of them; without gradients."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = self.sum(torch.cat([tensor.detach().reshape(-1) for tensor in tensors])).div_(self.size)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients of parameters, of those that have one, by their means over the processes."""
        if self.size > 1:
            found = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_copy_(found, self.means(found))  # hundreds of tensors at a time

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over the processes. Where they are equal already, they stay as they are."""
        if self.size > 1:
            # In float32 a third of a + a + a may be another number than a.
            for tensor, mean in zip(tensors, self.means([each.double() for each in tensors]), strict=True):
                tensor.copy_(mean)

    # --- work that is shared out ---

    def part(self, count: int) -> slice:
        """Which of `count` things are this process's: neighbours, and as many as of any other one, or one less."""
        each, more = divmod(count, self.size)
        first = self.rank * each + min(self.rank, more)
        return slice(first, first + each + (self.rank < more))

    def joined_parts(self, own: Tensor, count: int) -> Tensor:
        """[count, …] from the `part` of each process, [n, …] on the CPU."""
        if self.size == 1:
            return own
        most = -(-count // self.size)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._meeting():
            dist.all_gather(found, padded)
        lengths = [len(range(count)[World(rank, self.size).part(count)]) for rank in range(self.size)]
        return torch.cat([rows[:length] for rows, length in zip(found, lengths, strict=True)])

    def spread(self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """`work(items)`, one result for each: every process does a part of them, and has all results."""
        if self.size == 1:
            return work(items)
        mine, own = items[self.part(len(items))], []
        self.apart = True
        try:
            with self.together():
                own = work(mine) if mine else []
        finally:
            self.apart = False
        return [result for results in self.gather(own) for result in results]

    # --- words ---

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([int(flag)])).item())

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by rank: plain values and tensors on the CPU."""
        found = [value]
        if self.size > 1:
            found = [None] * self.size
            with self._meeting():
                dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Result) -> Result:
        """What process 0 gives."""
        return self.gather(value)[0] if self.size > 1 else value

    def agree(self, when: str, values: Mapping[str, str], advice: str) -> None:
        """UserError, in all processes, where a named value is not the same in all of them."""
        if self.size == 1:
            return
        found = self.gather(dict(values))
        for name in values:
            odd = [rank for rank, each in enumerate(found) if each.get(name) != found[0].get(name)]
            if odd:
                message = f"{when} process {odd[0]} has not the same {name} as process 0: {advice}."
                raise UserError(message) if self.leads else ToldElsewhereError(message)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A `UserError` in one process becomes one in all of them, at the end of the context."""
        if self.size == 1:
            yield
            return
        error: UserError | None = None
        try:
            yield
        except LostProcessError:
            raise
        except UserError as raised:
            error = raised
        told = self.gather(None if error is None else str(error))
        if error is not None and not any(told[: self.rank]):
            raise error
        if first := next((message for message in told if message), None):
            raise ToldElsewhereError(first)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-100:]
            raise LostProcessError(f"another process of this run has ended (…{reason}): {LOST}.") from error


ALONE = World()


def launched() -> tuple[int, int]:
    """(rank, size) of this process as `torchrun` has started it; (0, 1) where it has not."""
    words = [os.environ.get(name, "") for name in VARIABLES]
    return (int(words[0]), int(words[1])) if all(words) and words[0].isdecimal() and words[1].isdecimal() else (0, 1)


_store: Any = None  # of the process group that `joined` has made


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The world of a process that `torchrun` has started, or of one that has called `init_process_group` itself;
    `ALONE` for others.

    device: of the run. With auto and cuda every process has a GPU of its own, and NCCL carries what is on it; with
        cuda:N those of a machine share one; gloo carries everything else.
    """
    global _store
    rank, size = launched()
    if not (dist.is_available() and dist.is_initialized()):
        if size == 1:
            yield ALONE
            return
        own_gpus = device in ("auto", "cuda") and torch.cuda.is_available()
        try:
            _store, rank, size = next(iter(dist.rendezvous("env://", rank, size, timeout=LONGEST_START)))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if own_gpus else "gloo",
                store=dist.PrefixStore("fastnas", _store),
                rank=rank,
                world_size=size,
                timeout=LONGEST_WAIT,
            )
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise UserError(
                f"process {rank} of {size} cannot reach the others at {where} ({' '.join(str(error).split())[:200]}): "
                "start all of them by torchrun, on machines that reach each other."
            ) from error
        atexit.register(_leave)
    world = World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    if _store is None or world.size == 1:
        yield world
        return
    with Heartbeat(dist.PrefixStore("heartbeat", _store), world.rank, world.size, f"{LOST}.") as heartbeat:
        yield world
        heartbeat.leaving = True
        with suppress(LostProcessError):
            world.gather(None)  # process 0 may hold the store, and writes the report when the others are done


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
