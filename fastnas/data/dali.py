"""The `dali` pipeline: NVIDIA DALI decodes and resizes ahead of the search, on the GPU where there is one.

Each file comes to DALI with what to do with the image, random draws included, so DALI keeps no state: any batch can be
had at any time, as from the other pipelines. It returns uint8 images of one size, which `fastnas.ops` reads in DALI's
memory and turns into the batch.
"""

from __future__ import annotations

import importlib.util
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch

from fastnas.data.folder import FolderSource
from fastnas.data.image import centre, fitted_size
from fastnas.data.pipeline import Batch, EpochPlan, Pipeline
from fastnas.data.source import Source
from fastnas.errors import UserError
from fastnas.ops import augment_batch, color_jitter, normalization_table

MOST_THREADS = 8  # by default: more rarely speed decoding up, and the search needs cores, too
CHUNK = 32  # files a thread reads at once: small files are read faster than threads take turns

Inputs = tuple[list[np.ndarray], ...]  # one list for each input of the graph, one array for each image of the batch


def is_installed() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


class DaliPipeline(Pipeline):
    """Files of any number and size, and arrays that exceed the memory of a GPU.

    Takes the arguments of `Pipeline`. `workers` are threads that read and decode (0 counts as 1), `prefetch` is how
    many batches they are ahead.

    Raises:
        UserError: DALI is not installed or does not start on this device.
    """

    kind: ClassVar[str] = "dali"

    def __init__(self, source: Source, **options: Any) -> None:
        super().__init__(source, **options)
        if not is_installed():
            raise UserError(
                'the dali pipeline needs NVIDIA DALI: pip install "fastnas[dali]", or pip install nvidia-dali-cuda130; '
                "or take --pipeline torchvision"
            )
        self._threads = min(MOST_THREADS, os.cpu_count() or 1) if self.workers is None else max(1, self.workers)
        self._table = normalization_table(*source.statistics(), dtype=self.dtype, device=self.device)  # [C, 256]
        self._labels = torch.from_numpy(source.labels)  # [N]
        self._readers = ThreadPoolExecutor(self._threads, thread_name_prefix="fastnas-read")
        self._idle = [Graph(self, self._threads)]  # one is enough unless epochs overlap

    def batch(self, epoch: int, step: int) -> Batch:
        (batch,) = self._batches(epoch, [step])
        return batch

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        return self._batches(epoch, range(start, len(self)))

    def _batches(self, epoch: int, steps: Iterable[int]) -> Iterator[Batch]:
        plan = self.plan(epoch)
        places = [self.positions(step) for step in steps]
        graph = self._idle.pop() if self._idle else Graph(self, self._threads)
        for place, pixels in zip(places, graph.run(self._inputs(plan, places)), strict=True):
            batch = self._finish(plan, place, pixels)
            graph.has_been_read()
            yield batch
        self._idle.append(graph)  # one that was left early or broke is not used again

    def _inputs(self, plan: EpochPlan, places: Iterable[slice]) -> Iterator[Inputs]:
        """What DALI is fed, batch by batch, read `prefetch` batches ahead."""
        ahead: deque[tuple[slice, list[Future[list[np.ndarray]]]]] = deque()
        for place in places:
            order = plan.order[place]  # [B]
            chunks = [order[first : first + CHUNK] for first in range(0, len(order), CHUNK)]
            ahead.append((place, [self._readers.submit(self._read, chunk) for chunk in chunks]))
            if len(ahead) > self.prefetch:
                yield self._assemble(plan, *ahead.popleft())
        while ahead:
            yield self._assemble(plan, *ahead.popleft())

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        if isinstance(self.source, FolderSource):
            return self.source.encoded(indices)
        if self.augment and self.augmentation.crop_area is not None:
            return [self.source.original(index) for index in indices]
        return list(self.source.read(indices))

    def _assemble(self, plan: EpochPlan, place: slice, reading: list[Future[list[np.ndarray]]]) -> Inputs:
        inputs: list[list[np.ndarray]] = [[item for chunk in reading for item in chunk.result()]]
        draws = plan.draws
        if draws is not None and draws.boxes is not None:
            box = draws.boxes[place].astype(np.int32)  # [B, 4]
            inputs += [list(box[:, :2]), list(box[:, 2:])]
        elif isinstance(self.source, FolderSource) and self.source.shorter_side is not None:
            sizes = [
                fitted_size(tuple(size), self.source.shorter_side) for size in self.source.sizes[plan.order[place]]
            ]
            corners = [centre(size, self.source.image_size[0]) for size in sizes]
            inputs += [[np.array(size, np.float32) for size in sizes], [np.array(c, np.int32) for c in corners]]
        return tuple(inputs)

    def _finish(self, plan: EpochPlan, place: slice, pixels: Any) -> Batch:
        """`pixels`: DALI's list of uint8 images, or its error."""
        order = plan.order[place]  # [B]
        if isinstance(pixels, RuntimeError):
            raise self._explained(plan, order, pixels) from pixels
        if isinstance(self.source, FolderSource):
            for row, index in enumerate(order):
                self.source.check_size(index, tuple(pixels[row].shape()[:2]))
        images = torch.from_dlpack(pixels.as_tensor())  # [B, H, W, C], in DALI's memory
        moves = None
        if plan.draws is not None:
            moves = torch.from_numpy(plan.draws.moves[place]).to(self.device, non_blocking=True)  # [B, 5]
            if plan.draws.colours is not None:
                images = color_jitter(images, torch.from_numpy(plan.draws.colours[place]))  # [B, H, W, C]
        batch = augment_batch(
            images,
            self._table,
            draws=moves,
            padding=self.augmentation.crop_padding,
            cutout=self.augmentation.cutout,
        )  # [B, C, H, W]
        return batch, self._labels[torch.from_numpy(order)].to(self.device, non_blocking=True)  # [B, C, H, W], [B]

    def _explained(self, plan: EpochPlan, order: np.ndarray, error: RuntimeError) -> UserError:
        """DALI does not name the file: find it."""
        boxed = plan.draws is not None and plan.draws.boxes is not None
        if isinstance(self.source, FolderSource):
            for index in order:
                # The one that cannot be read raises the UserError that names it.
                self.source.original(index) if boxed else self.source.image(index)
        reason = next((line.strip() for line in str(error).splitlines() if "rror" in line and "when" not in line), "")
        return UserError(f"DALI cannot prepare a batch of {self.source.spec}: {reason}; use --pipeline torchvision")


class Graph:
    """The operators of DALI that make uint8 images of one size from files or arrays, ahead of their consumer."""

    def __init__(self, pipeline: DaliPipeline, threads: int) -> None:
        from nvidia.dali import Pipeline as Executor  # here, because it is optional and takes a while

        device = pipeline.device
        self._stream_device = device if device.type == "cuda" else None
        self._read: torch.cuda.Event | None = None
        self._feed = _Feed()
        try:
            device_id = (
                None if self._stream_device is None else torch.cuda._utils._get_device_index(device, optional=True)
            )
            self._executor = Executor(
                batch_size=pipeline.batch_size,
                num_threads=threads,
                device_id=device_id,
                prefetch_queue_depth=pipeline.prefetch,
            )
            with self._executor:
                self._executor.set_outputs(_operators(pipeline, self._feed))
            self._executor.build()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"DALI does not start on {device}: {reason}; use --pipeline torchvision") from error

    def run(self, inputs: Iterator[Inputs]) -> Iterator[Any]:
        """DALI's list of images for each of the `inputs`; a RuntimeError in place of a batch that it cannot make.

        Raises:
            UserError: from `inputs`, after the batches before it.
        """
        self._feed.inputs, self._feed.error = inputs, None
        self._executor.schedule_run()
        while True:
            try:
                stream = None if self._stream_device is None else torch.cuda.current_stream(self._stream_device)
                (images,) = self._executor.share_outputs(cuda_stream=stream)
            except StopIteration:
                break
            except RuntimeError as error:
                yield error
                return
            yield images
            if self._read is not None:
                self._read.synchronize()
            self._executor.release_outputs()
            self._executor.schedule_run()
        if self._feed.error is not None:
            raise self._feed.error
        self._executor.reset()

    def has_been_read(self) -> None:
        """Everything that reads the images in DALI's memory has been launched. DALI gets that memory back, and fills it
        anew, only when the GPU has come so far; what the consumer launches later is not waited for."""
        if self._stream_device is not None:
            self._read = torch.cuda.current_stream(self._stream_device).record_event()


class _Feed:
    """What DALI calls for its inputs. It runs ahead, so an error waits until the batches before it have been taken.

    Not a method of `Graph`: a graph that referred to itself would keep DALI's threads until some garbage collection,
    and one in a forked process, such as another DataLoader's worker, would crash there.
    """

    def __init__(self) -> None:
        self.inputs: Iterator[Inputs] = iter(())
        self.error: UserError | None = None

    def __call__(self) -> Inputs:
        try:
            return next(self.inputs)
        except UserError as error:
            self.error = error
            raise StopIteration from error


def _operators(pipeline: DaliPipeline, source: Any) -> Any:
    """The graph. Its inputs come in the order in which `DaliPipeline._assemble` gives them."""
    from nvidia.dali import fn, types

    from_files = isinstance(pipeline.source, FolderSource)
    height, width = pipeline.source.image_size
    augmentation = pipeline.augmentation if pipeline.augment else None
    boxed = augmentation is not None and augmentation.crop_area is not None
    resized = isinstance(pipeline.source, FolderSource) and pipeline.source.shorter_side is not None and not boxed
    on_gpu = pipeline.device.type == "cuda"
    kinds = [(types.UINT8, 1, "") if from_files else (types.UINT8, 3, "HWC")]
    kinds += [(types.INT32, 1, "")] * 2 if boxed else []
    kinds += [(types.FLOAT, 1, ""), (types.INT32, 1, "")] if resized else []
    content, *rest = fn.external_source(
        source=source,
        num_outputs=len(kinds),
        batch=True,
        dtype=[kind for kind, _, _ in kinds],
        ndim=[dimensions for _, dimensions, _ in kinds],
        layout=[layout for _, _, layout in kinds],
    )
    decoding = {"device": "mixed" if on_gpu else "cpu", "output_type": types.RGB, "jpeg_fancy_upsampling": True}
    if boxed:
        start, shape, *rest = rest
        if from_files:
            image = fn.decoders.image_slice(content, start=start, shape=shape, axis_names="HW", **decoding)
        else:
            image = fn.slice(content.gpu() if on_gpu else content, start=start, shape=shape, axis_names="HW")
        image = fn.resize(image, size=(height, width), interp_type=types.INTERP_LINEAR, antialias=True)
    elif from_files:
        image = fn.decoders.image(content, **decoding)
    else:
        image = content.gpu() if on_gpu else content
    if resized:
        size, corner, *rest = rest
        image = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        image = fn.slice(image, start=corner, shape=(height, width), axis_names="HW")
    return image
