"""What the loop of a search and that of a retraining share: epochs, steps, interruption, clocks and the checkpoint."""

from __future__ import annotations

import math
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastnas.data import Pipeline
from fastnas.engine.checkpoint import Layout, check_layout, random_state, save_checkpoint, set_random_state
from fastnas.engine.interrupt import Interrupted, InterruptGuard
from fastnas.engine.log import RunLog, SilentLog
from fastnas.engine.meter import Meter
from fastnas.errors import UserError
from fastnas.nn.batch_norm import check_one_image
from fastnas.world import ALONE, ToldElsewhereError, World

# Reading the loss waits for the GPU, so there it is checked only once in this many steps.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 20}

LAYOUT: Layout = {
    "options": dict,
    "images": {"count": int, "classes": list, "image_size": list},
    "clock": {"epoch": int, "step": int},
    "meter": {"loss": Tensor, "correct": Tensor, "images": int},
    "random": {"python": list, "numpy": list, "torch": Tensor, "cuda": list},
    "log_position": int,
    "seconds": dict,
}
"""What every checkpoint holds."""

RENAMED_CLOCKS = {"evolution": "strategy"}  # name in older checkpoints: name now

Status = Literal["finished", "interrupted", "stopped"]  # at its end, by a signal, by stop_after


class DivergedError(UserError):
    """The loss became NaN or infinite."""


class Loop(ABC):
    """Epochs from the first, or from the place of a checkpoint, to the last.

    A subclass makes its network and optimizer, calls `_begin`, and says what an epoch is and what its state is.

    Args:
        directory: of the run; exists.
        seed: of everything that the loop draws.
        options: plain values, stored in the checkpoint and compared on resume.
        epochs: planned.
        check_images: what a resume compares the images by, "sizes" or "bytes"; see `Source.digest`.
        pipeline: of the training batches.
        device: of the network.
        stop_after: stop after so many epochs in this process; None for no stop.
        world: the processes of the run. Each trains on its part of every batch; process 0 writes all files.
    """

    def __init__(
        self,
        *,
        directory: Path,
        seed: int,
        options: dict[str, Any],
        epochs: int,
        pipeline: Pipeline,
        device: torch.device,
        stop_after: int | None,
        check_images: str,
        world: World = ALONE,
    ) -> None:
        self.world = world
        self.directory = directory
        self.seed = seed
        self.options = options
        self.epochs = epochs
        self.device = device
        self.stop_after = stop_after
        self.epoch = 0
        self.step = 0
        self.show: Callable[[str, int, int], None] = lambda phase, done, total: None
        """Called with the phase in progress, and how many of its steps are done; the command line draws a bar."""
        self.check_owned: Callable[[], None] = lambda: None
        """Called before the checkpoint is replaced: raises where the run directory belongs to another process by now.
        """
        self.log: RunLog | SilentLog
        self.resumed = False
        self._pipeline = pipeline.part(world.rank, world.size)
        self._images = self._describe_images(check_images == "bytes")
        self._meter = Meter.on(device)
        self._seconds: dict[str, float] = {}
        self._guard = InterruptGuard(impatient=world.size == 1)

    @property
    def checkpoint_path(self) -> Path:
        return self.directory / "checkpoint.pt"

    def seed_for(self, *key: int) -> int:
        """A seed below 2³² that depends on the run's seed and `key` alone, so no generator has to be saved."""
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])

    def check_stop(self) -> None:
        """Raises `Interrupted` if the user asked to stop. Call it where the state is complete, and in all processes
        alike."""
        if self.world.apart:
            return
        if self.world.any(self._guard.requested is not None):
            self._guard.requested = next(filter(None, self.world.gather(self._guard.requested)))
            raise Interrupted

    # --- what a subclass says ---

    @abstractmethod
    def _run_epoch(self) -> None:
        """One epoch, or the rest of it; ends with `_end_epoch`."""

    layout: ClassVar[Layout]
    """Of `_state`: keys that older checkpoints lack are left out."""

    @classmethod
    def check_keys(cls, checkpoint: dict[str, Any], path: Path) -> None:
        """UserError unless a checkpoint has every key that a loop of this kind reads, of the right type."""
        check_layout(checkpoint, {**LAYOUT, **cls.layout}, path)

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond the loop's own state."""

    @abstractmethod
    def _load_state(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `_state`. Raises whatever it likes where the values do not fit."""

    @property
    @abstractmethod
    def _networks(self) -> Sequence[nn.Module]:
        """Whose running statistics each process has of its own, from its images, until they are averaged."""

    @abstractmethod
    def _final(self) -> dict[str, Any]:
        """Fields of the "end" event."""

    def _conclude(self) -> None:  # noqa: B027  (an empty hook)
        """After the last epoch: what is left to measure. If interrupted, the resumed run calls it again."""

    def _finished(self) -> bool:
        """Whether there is no epoch left; a subclass may end before the last planned one."""
        return self.epoch >= self.epochs

    # --- the loop ---

    def _begin(self, checkpoint: dict[str, Any] | None) -> None:
        self.resumed = checkpoint is not None
        if self.world.size > 1 and self._pipeline.batch_size == 1:
            source = self._pipeline.source
            advice = f"give a --batch-size of {2 * self.world.size} or more, or start fewer processes"
            check_one_image(self._networks[0], (source.channels, *source.image_size), advice)
        if checkpoint is None:
            self.log = RunLog(self.directory) if self.world.leads else SilentLog()
        else:
            self._restore(checkpoint)

    def _loop(self) -> Status:
        """Epochs until the last one, `stop_after` or a signal.

        Raises:
            DivergedError: NaN or infinite loss; the last checkpoint stays.
        """
        started = self.epoch
        status: Status = "finished"
        try:
            with self._guard:
                self.world.agree(
                    "before the first step",
                    {"options": repr(self.options), "images": repr(self._images)},
                    "start all processes by the same command, with the same images",
                )
                if not self.resumed:
                    self.save()
                try:
                    while not self._finished():
                        self._run_epoch()
                        if not self._finished():
                            if self.stop_after is not None and self.epoch - started >= self.stop_after:
                                status = "stopped"
                                break
                            self.check_stop()
                    if status == "finished":
                        self._conclude()
                except Interrupted:
                    status = "interrupted"
                    self.save()
            if status == "finished":
                self.log.write("end", **self._final())
            else:
                reason = self._guard.requested or f"stop_after={self.stop_after}"
                self.log.write("interrupted", epochs_done=self.epoch, step=self.step, reason=reason)
        finally:
            self.log.close()
        return status

    def _end_epoch(self) -> None:
        self.epoch += 1
        self.step = 0
        self._meter, self._seconds = Meter.on(self.device), {}
        self.save()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rest of the epoch's batches; time spent waiting for them counts as "data"."""
        batches = self._pipeline.epoch(self.epoch, start=self.step)
        while True:
            with self._timed("data"):
                batch = self._next(batches)
            if batch is None:
                return
            yield batch

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        try:
            return next(batches, None)
        except UserError:  # a file is missing, for instance: once it is back, the run can continue right here
            if self.world.size == 1:  # others may not miss it, and save nothing
                self.save()
            raise

    def _check_finite(self, rate: float) -> None:
        """Raises DivergedError if the loss is not finite. Call it after every step, before `step` is counted up."""
        interval = STEPS_BETWEEN_CHECKS.get(self.device.type, 1)
        if (self.step + 1) % interval and self.step + 1 != len(self._pipeline):
            return
        loss = self.world.sum(self._meter.loss.cpu().clone()).item()
        if not math.isfinite(loss):
            message = (
                f"the loss became {loss} at epoch {self.epoch + 1}, step {self.step + 1} (learning rate {rate:.4g}). "
                f"The last good checkpoint is {self.checkpoint_path}; start again with a lower --learning-rate or a "
                "smaller --clip."
            )
            raise DivergedError(message) if self.world.leads else ToldElsewhereError(message)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin

    # --- checkpoint ---

    def save(self) -> None:
        """Writes the checkpoint: all that the processes need to continue as if nothing had happened."""
        own: dict[str, Any] = {"meter": self._meter.state_dict(), "random": random_state()}
        if self.world.size == 1:
            self._write(own)
            return
        kept = [buffer.clone() for buffer in self._statistics()]
        own["meter"] = {name: torch.as_tensor(value).cpu() for name, value in own["meter"].items()}
        own["statistics"] = [buffer.cpu() for buffer in kept]
        ranks = self.world.gather(own)
        self._average_statistics()
        if self.world.leads:
            self._write({**own, "meter": self._meter.state_dict(), "ranks": ranks})
        self._set_statistics(kept)

    def _write(self, own: dict[str, Any]) -> None:
        own.pop("statistics", None)  # in "ranks", and their means in "network"
        self.check_owned()
        save_checkpoint(
            self.checkpoint_path,
            {
                "options": self.options,
                "images": self._images,
                "clock": {"epoch": self.epoch, "step": self.step},
                **own,
                "log_position": self.log.position(),
                "seconds": dict(self._seconds),
                **self._state(),
            },
        )

    def _statistics(self) -> list[Tensor]:
        return [buffer for network in self._networks for buffer in network.buffers() if buffer.is_floating_point()]

    def _average_statistics(self) -> None:
        """Gives the networks of all processes the same running statistics: call it after the steps of an epoch."""
        self.world.average(self._statistics())

    @torch.no_grad()
    def _set_statistics(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._statistics(), values, strict=True):
            buffer.copy_(value)

    def _describe_images(self, of_bytes: bool) -> dict[str, Any]:
        """What a continuation must find unchanged: with other images the same positions would mean other batches."""
        source = self._pipeline.source
        return {
            "count": len(source),
            "classes": list(source.classes),
            "image_size": list(source.image_size),
            "digest": source.digest(of_bytes),
        }

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over a checkpoint. Whatever is wrong with it shows before a file of the run is changed."""
        self.check_keys(checkpoint, self.checkpoint_path)
        self._check_images(checkpoint["images"])
        clock, written = checkpoint["clock"], checkpoint["log_position"]
        try:
            own = self._own_part(checkpoint)
            meter = own["meter"]
            if min(*clock.values(), meter["images"], written) < 0:
                raise ValueError("a count below 0")
            self.epoch, self.step = clock["epoch"], clock["step"]
            self._load_state(checkpoint)
            if "statistics" in own:
                self._set_statistics(own["statistics"])
            self._meter = Meter(meter["loss"].to(self.device), meter["correct"].to(self.device), int(meter["images"]))
            self._seconds = {RENAMED_CLOCKS.get(name, name): float(s) for name, s in checkpoint["seconds"].items()}
            set_random_state(own["random"])
        except UserError:
            raise
        except Exception as error:  # a state that fits no longer makes its reader fail in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"the checkpoint {self.checkpoint_path} does not fit this run ({reason}): restore a copy, or start a "
                "new run."
            ) from error
        self.log = RunLog(self.directory, written, self.epoch) if self.world.leads else SilentLog()

    def _own_part(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds for this process alone. If there were more processes or fewer, process 0 takes over
        what all of them had counted, and all take the averaged statistics."""
        ranks = checkpoint.get("ranks", [checkpoint])
        if len(ranks) == self.world.size:
            return ranks[self.world.rank]
        meters = [part["meter"] for part in ranks]
        total = {name: sum(meter[name] * self.world.leads for meter in meters) for name in meters[0]}
        return {"random": ranks[self.world.rank % len(ranks)]["random"], "meter": total}

    def _check_images(self, before: dict[str, Any]) -> None:
        """UserError where the images are not those that the run began with."""
        for name, now in self._images.items():
            if name not in before or before[name] == now:  # older checkpoints hold no digests
                continue
            what = f"{name} is {now} but was {before[name]}"
            if "digest" in name:
                which = "test images" if name == "test_digest" else "images"
                what = f"{which} have been renamed, exchanged, added or removed"
            raise UserError(
                f"the images in {self._pipeline.source.spec} are not those that the run in {self.directory} "
                f"began with: {what[:200]}. Restore them, or start a new run."
            )


def is_validated(epoch: int, epochs: int, every: int) -> bool:
    """Whether validation follows an epoch, counted from 0; it always follows the last one."""
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MiB: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
