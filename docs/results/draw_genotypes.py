"""Draws random genotypes of the size of a given one: `draw_genotypes.py GENOTYPE COUNT OUT`.

Each of the four nodes gets two different sources and two of the seven operations of the `egnas` space, all equally
likely; genotypes whose network (C = 8, 5 cells) has not the same number of parameters within 5 % are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fastnas import Genotype, count_parameters
from fastnas.nn import DerivedNetwork
from fastnas.spaces import find


def parameters(genotype: Genotype) -> int:
    return count_parameters(DerivedNetwork(genotype, channels=8, layers=5))


def draw(random: np.random.Generator, candidates: list[str]) -> Genotype:
    def cell() -> list[tuple[str, int]]:
        return [
            (candidates[random.integers(len(candidates))], int(source))
            for node in range(2, 6)
            for source in random.choice(node, size=2, replace=False)
        ]

    return Genotype(cell(), [2, 3, 4, 5], cell(), [2, 3, 4, 5])


def main(given: str, count: str, out: str) -> None:
    wanted = parameters(Genotype.load(given))
    print(f"{given}: {wanted:,} parameters")
    random = np.random.default_rng(0)
    candidates = list(find("egnas").candidates)
    for number in range(1, int(count) + 1):
        genotype = draw(random, candidates)
        while abs(parameters(genotype) - wanted) > 0.05 * wanted:
            genotype = draw(random, candidates)
        path = Path(out, f"random-{number}.json")
        genotype.to_json(path)
        print(f"{path.name}: {parameters(genotype):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
