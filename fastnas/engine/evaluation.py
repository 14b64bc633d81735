"""How well a network classifies: loss, top-1 and top-5, each class, and which classes it confuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.data import Pipeline


@dataclass(frozen=True)
class Evaluation:
    """The results on all images of a pipeline. Accuracies are shares in 0..1.

    Attributes:
        images: how many.
        loss: mean cross-entropy in nats.
        top1, top5: share whose class is the likeliest, or among the five likeliest.
        per_class: top-1 of the images of each class; None for a class without images.
        confusion: [K][K] counts: row = class, column = prediction.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: list[float | None]
    confusion: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    network: nn.Module, pipeline: Pipeline, progress: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation:
    """Runs `network`, which gives logits [B, K], over the pipeline in evaluation mode, then restores its mode."""
    was_training, device = network.training, pipeline.device
    network.eval()
    classes = len(pipeline.source.classes)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)  # [K·K]
    loss = torch.zeros((), dtype=torch.float64, device=device)
    among_five = torch.zeros((), dtype=torch.int64, device=device)
    for step, (images, labels) in enumerate(pipeline.epoch(0)):  # [B, C, H, W], [B]
        logits = network(images).float()  # [B, K]
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        confusion += torch.bincount(labels * classes + logits.argmax(-1), minlength=classes * classes)
        five: Tensor = logits.topk(min(5, classes)).indices  # [B, 5]
        among_five += (five == labels[:, None]).any(-1).sum()
        progress(step + 1, len(pipeline))
    network.train(was_training)
    table = confusion.view(classes, classes).cpu()  # [K, K]
    right, images_of = table.diagonal().tolist(), table.sum(1).tolist()
    total = int(table.sum())
    return Evaluation(
        images=total,
        loss=loss.item() / total,
        top1=sum(right) / total,
        top5=int(among_five) / total,
        per_class=[hit / count if count else None for hit, count in zip(right, images_of, strict=True)],
        confusion=table.tolist(),
    )
