"""How far rounding drives the fused and the reference supernet apart, next to how far two seeds are apart.

    python docs/results/loss_curves.py

Trains three supernets in float32 for 200 steps on the same batches of digits, weights and α alternately as first-order
DARTS does: fused and reference from one state (seed 0), and the reference from another (seed 1). Prints the mean
absolute differences of their weight losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnas import data
from fastnas.nn import Supernet

STEPS = 200
SETTINGS = [("egnas", 4), ("darts", 1)]  # space, partial channels


def curve(space: str, partial_channels: int, backend: str, seed: int) -> Tensor:
    """The loss of every weight step, [STEPS]."""
    torch.manual_seed(seed)
    network = Supernet(space, 8, 3, in_channels=1, partial_channels=partial_channels, backend=backend)
    batches = data.pipeline(data.open("digits", limit=1600, image_size=16), "tensor", batch_size=32)
    weights = torch.optim.SGD(network.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    alphas = torch.optim.Adam(network.alphas.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        epoch, index = divmod(step, 25)
        for optimizer, offset in ((alphas, 25), (weights, 0)):  # the second half of the batches is that of α
            images, labels = batches.batch(epoch, index + offset)
            network.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.weight_parameters(), 5)
            optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def main() -> None:
    print("| space | partial channels | fused - reference | seed 1 - seed 0 | first loss | last 20 losses |")
    print("|---|---|---|---|---|---|")
    for space, parts in SETTINGS:
        fused = curve(space, parts, "fused", 0)
        reference = curve(space, parts, "reference", 0)
        other = curve(space, parts, "reference", 1)
        backends, seeds = ((one - reference).abs().mean() for one in (fused, other))
        ends = f"{fused[0]:.3f} | {fused[-20:].mean():.3f} fused, {reference[-20:].mean():.3f} reference"
        print(f"| {space} | {parts} | {backends:.5f} | {seeds:.5f} | {ends} |")


if __name__ == "__main__":
    main()
