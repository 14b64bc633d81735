"""What a network gets right, of few classes and of very many."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastnas.engine.evaluation import MOST_DENSE, evaluate, pairs_of


class Batches:
    """Stands for a pipeline: an image is its prediction, [1, 1, 1]."""

    def __init__(self, classes: int, labels: Tensor, predictions: Tensor) -> None:
        self.device = torch.device("cpu")
        self.source = SimpleNamespace(classes=range(classes))
        self._batches = list(zip(predictions.view(-1, 1, 1, 1).split(7), labels.split(7), strict=True))

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)


class Says(nn.Module):
    """Is sure of what the image says, and holds the classes after it for the next best."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), self.classes)
        for rank in range(min(5, self.classes)):
            logits.scatter_(1, (images.view(-1, 1) + rank) % self.classes, 5.0 - rank)
        return logits


def found_with(classes: int, images: int = 40) -> tuple[Any, Tensor, Tensor]:
    labels, predictions = torch.randint(classes, (2, images))
    predictions[::3] = labels[::3]
    return evaluate(Says(classes), Batches(classes, labels, predictions)), labels, predictions  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [1, 2, MOST_DENSE, MOST_DENSE + 1, 100_000])
def test_counts_are_right_for_any_number_of_classes(classes: int) -> None:
    # A table of 100,000 classes would take 80 GB.
    found, labels, predictions = found_with(classes)
    hits = predictions == labels
    assert found.images == len(labels)
    assert found.top1 == pytest.approx(hits.float().mean().item())
    assert found.top5 == pytest.approx((((labels - predictions) % classes) < 5).float().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(Says(classes)(predictions), labels).item(), rel=1e-5)
    assert len(found.per_class) == classes
    for k in labels.tolist():
        assert found.per_class[k] == pytest.approx(hits[labels == k].float().mean().item())
    assert sum(share is not None for share in found.per_class) == len(labels.unique())
    together = torch.stack([labels, predictions], 1)
    counted = [(*pair, int((together == torch.tensor(pair)).all(1).sum())) for pair in together.unique(dim=0).tolist()]
    assert pairs_of(found.confusion) == counted


def test_few_classes_make_a_table_and_many_only_what_occurs() -> None:
    table = found_with(MOST_DENSE)[0].confusion
    assert [len(table), *{len(row) for row in table}] == [MOST_DENSE, MOST_DENSE]
    found = found_with(MOST_DENSE + 1)[0].to_dict()["confusion"]
    assert list(found) == ["class", "prediction", "count"]
    assert sum(found["count"]) == 40
    assert len(found["class"]) <= 40
