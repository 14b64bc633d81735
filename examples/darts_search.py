"""DARTS (Liu et al. 2019, first order) on scanned digits, in plain PyTorch; --accelerate adds one line.

python examples/darts_search.py
python examples/darts_search.py --accelerate
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from darts_network import Network
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits(images: int) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] with mean 0 and deviation 1, and their labels [N]; N at most 1,797."""
    scans, labels = load_digits(return_X_y=True)
    x = torch.tensor(scans[:images], dtype=torch.float32).view(-1, 1, 8, 8)
    return (x - x.mean()) / x.std(), torch.tensor(labels[:images])


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    hits = sum((network(a).argmax(-1) == b).sum().item() for a, b in zip(x.split(128), y.split(128), strict=True))
    network.train()
    return hits / len(y)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="First-order DARTS on scanned digits.")
    parser.add_argument("--accelerate", action="store_true", help="run the same network on the operators of fastnas")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1797)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    x, y = digits(args.images)
    train, valid = torch.randperm(len(x)).chunk(2)  # one half trains the weights, the other α
    batch = min(args.batch, len(valid))

    network = Network(args.channels, num_classes=10, layers=args.layers, in_channels=1)
    if args.accelerate:
        import fastnas.compat

        fastnas.compat.accelerate(network)  # ← the one line
        print(fastnas.compat.report(network))

    optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    alpha_optimizer = torch.optim.Adam(network.alphas, lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=0.001)

    for epoch in range(args.epochs):
        losses, hits, seen, began = 0.0, 0, 0, time.perf_counter()
        batches = train[torch.randperm(len(train))].chunk(max(1, len(train) // batch))
        for rows in batches:
            # α: one step of Adam on a batch of the other half.
            others = valid[torch.randint(len(valid), (batch,))]
            alpha_optimizer.zero_grad()
            F.cross_entropy(network(x[others]), y[others]).backward()
            alpha_optimizer.step()

            # The weights: one step of SGD.
            optimizer.zero_grad()
            logits = network(x[rows])
            loss = F.cross_entropy(logits, y[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()

            losses += loss.item() * len(rows)
            hits += (logits.argmax(-1) == y[rows]).sum().item()
            seen += len(rows)
        scheduler.step()
        step = (time.perf_counter() - began) / len(batches)
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {losses / seen:.3f}  train {hits / seen:6.1%}  "
            f"valid {accuracy(network, x[valid], y[valid]):6.1%}  {1000 * step:6.0f} ms/step"
        )

    for kind, pairs in network.genotype().items():
        print(f"\n{kind}")
        for node in range(len(pairs) // 2):
            (first, i), (second, j) = pairs[2 * node : 2 * node + 2]
            print(f"  node {node}:  {first:12} of {state(i)}  +  {second:12} of {state(j)}")


def state(source: int) -> str:
    return f"input {source}" if source < 2 else f"node {source - 2}"


if __name__ == "__main__":
    main()
