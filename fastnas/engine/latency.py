"""How long one forward pass takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass of `batch` images, in seconds: median and 95th percentile over `runs`."""

    batch: int
    runs: int
    median: float
    p95: float


@torch.no_grad()
def latency(network: nn.Module, images: Tensor, runs: int = 30) -> Latency:
    """Times `network(images)` in evaluation mode, after three runs that are not counted; images [B, C, H, W]."""
    was_training = network.training
    network.eval()
    seconds = []
    for _ in range(WARM_UP + max(2, runs)):
        begin = time.perf_counter()
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - begin)
    network.train(was_training)
    counted = seconds[WARM_UP:]
    return Latency(len(images), len(counted), median(counted), quantiles(counted, n=20, method="inclusive")[-1])
