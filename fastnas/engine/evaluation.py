"""How well a network classifies: loss, top-1 and top-5, each class, and which classes it confuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.data import Pipeline
from fastnas.world import ALONE, World

MOST_DENSE = 200  # classes whose confusion is a table

Confusion = list[list[int]] | dict[str, list[int]]
"""How many images of a class were taken for which: a table [K][K], row = class, column = prediction; of more than 200
classes the pairs that occur, as columns "class", "prediction" and "count" of equal length."""


def pairs_of(confusion: Confusion) -> list[tuple[int, int, int]]:
    """(class, prediction, images) of each pair that occurs, in this order."""
    if isinstance(confusion, dict):
        return list(zip(confusion["class"], confusion["prediction"], confusion["count"], strict=True))
    return [(k, j, count) for k, row in enumerate(confusion) for j, count in enumerate(row) if count]


@dataclass(frozen=True)
class Evaluation:
    """The results on all images of a pipeline. Accuracies are shares in 0..1.

    Attributes:
        images: how many.
        loss: mean cross-entropy in nats.
        top1, top5: share whose class is the likeliest, or among the five likeliest.
        per_class: top-1 of the images of each class; None for a class without images.
        confusion: which classes were taken for which, see `Confusion`.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: list[float | None]
    confusion: Confusion

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    pipeline: Pipeline,
    progress: Callable[[int, int], None] = lambda done, total: None,
    world: World = ALONE,
) -> Evaluation:
    """Runs `network`, which gives logits [B, K], over the pipeline in evaluation mode, then restores its mode.

    world: the processes that share out the images; the pipeline is this one's part. All get the results on all images.
    """
    was_training, device = network.training, pipeline.device
    network.eval()
    classes = len(pipeline.source.classes)
    pairs: list[Tensor] = []  # of each batch: class · K + prediction, [B]
    loss = torch.zeros((), dtype=torch.float64, device=device)
    among_five = torch.zeros((), dtype=torch.int64, device=device)
    for step, (images, labels) in enumerate(pipeline.epoch(0)):  # [B, C, H, W], [B]
        logits = network(images).float()  # [B, K]
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        pairs.append(labels * classes + logits.argmax(-1))
        five: Tensor = logits.topk(min(5, classes)).indices  # [B, 5]
        among_five += (five == labels[:, None]).any(-1).sum()
        progress(step + 1, len(pipeline))
    network.train(was_training)
    pair, count = torch.cat(world.gather(torch.cat(pairs).cpu())).unique(return_counts=True)  # [n] each
    label, prediction = pair // classes, pair % classes  # [n] each
    images_of = torch.zeros(classes, dtype=torch.int64).index_add_(0, label, count).tolist()  # [K]
    hits = label == prediction  # [n]
    right = torch.zeros(classes, dtype=torch.int64).index_add_(0, label[hits], count[hits]).tolist()  # [K]
    total = sum(images_of)
    confusion: Confusion = {"class": label.tolist(), "prediction": prediction.tolist(), "count": count.tolist()}
    if classes <= MOST_DENSE:
        table = torch.zeros(classes * classes, dtype=torch.int64).index_add_(0, pair, count)  # [K·K]
        confusion = table.view(classes, classes).tolist()
    return Evaluation(
        images=total,
        loss=world.sum(loss).item() / total,
        top1=sum(right) / total,
        top5=int(world.sum(among_five)) / total,
        per_class=[hit / count if count else None for hit, count in zip(right, images_of, strict=True)],
        confusion=confusion,
    )
