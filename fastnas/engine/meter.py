"""Loss and accuracy of an epoch, added up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastnas.world import ALONE, World


@dataclass
class Meter:
    """Running sums of the epoch in progress, on the device and part of the checkpoint."""

    loss: Tensor  # [] float64
    correct: Tensor  # [] int64
    images: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Meter:
        return cls(
            torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
        )

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:  # [], [B, classes], [B]
        self.loss += loss.detach().double() * len(labels)
        self.correct += (logits.argmax(-1) == labels).sum()
        self.images += len(labels)

    def means(self, world: World = ALONE) -> tuple[float, float]:
        """Loss and accuracy per image, over the images of all processes."""
        own = torch.tensor([self.loss.item(), self.correct.item(), self.images], dtype=torch.float64)
        loss, correct, images = world.sum(own).tolist()
        return loss / images, correct / images

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "correct": self.correct, "images": self.images}
