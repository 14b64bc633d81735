"""Whether searching pays: the cell that a search finds, beside 100 random cells of its size under the same weights.

    python docs/results/search_pays.py digits
    python docs/results/search_pays.py cifar10 FOLDER

For each variant of EG-NAS and each of four seeds: a search, then the accuracy of its cell and of 100 random ones as
paths through the supernet that was searched, on the whole validation half, BatchNorm by the statistics of the batch.
The 100 are those of 2,000 random cells whose candidates have most nearly as many parameters. Prints a row for each
search.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fastnas.cli.configuration import parse_search
from fastnas.cli.searching import prepare
from fastnas.engine.search import Search, entropy
from fastnas.evaluators import SharedWeights
from fastnas.spaces.encoding import Code, encoding_of

DRAWN, COMPARED = 2000, 100
IMAGES = {
    "digits": ["--preset", "demo"],
    "cifar10": [
        *("--preset", "demo", "--limit", "5000", "--image-size", "16"),
        *("--epochs", "50", "--warm-up", "25", "--fitness-batches", "3"),
    ],
}
VARIANTS = {
    "decided": ["--variant", "decided"],
    "paper": ["--variant", "paper"],
}


def parameters(search: Search, code: Code) -> int:
    """Of the candidates that a cell computes, in all cells of the supernet."""
    path = encoding_of(search.network.space).op_weights(code)
    return sum(
        parameter.numel()
        for cell in search.network.cells
        for edge, column in path[cell.kind].nonzero().tolist()
        for parameter in cell.edges[edge].candidates[column].parameters()
    )


def compared(search: Search, found: Code) -> Iterator[Code]:
    """Random cells of about the size of the one that was found."""
    random, encoding = Random(0), encoding_of(search.network.space)
    own = encoding.canonical(found)
    drawn = {encoding.canonical(encoding.sample(random)) for _ in range(DRAWN)} - {own}
    size = parameters(search, found)
    yield from sorted(drawn, key=lambda code: (abs(parameters(search, code) - size), code))[:COMPARED]


def row(images: str, variant: str, seed: int, flags: list[str]) -> str:
    with tempfile.TemporaryDirectory() as directory:
        arguments = [*IMAGES[images], *flags, *VARIANTS[variant], "--seed", str(seed), "--out", f"{directory}/run"]
        search = prepare(parse_search(arguments, "search_pays", ""), arguments)
        begin = time.perf_counter()
        search.run()
        seconds = time.perf_counter() - begin
        found = encoding_of(search.network.space).encode(search.strategy.genotype(search))
        evaluator = SharedWeights(search.network.eval(), lambda: search.valid_pipeline.epoch(0), "batch")
        accuracy, *others = [evaluator.evaluate([code])[0].accuracy for code in (found, *compared(search, found))]
        tables = search.strategy.mean_op_weights(search).values()
    better, equal = sum(each < accuracy for each in others), sum(each == accuracy for each in others)
    mean_entropy = sum(map(entropy, tables)) / len(tables)
    median, best = sorted(others)[len(others) // 2], max(others)
    return (
        f"| {variant} | {seed} | {better + equal / 2:g} | {accuracy:.1%} | {median:.1%} | {best:.1%} | "
        f"{mean_entropy:.3f} | {seconds:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=IMAGES)
    parser.add_argument("folder", nargs="?", type=Path, help="of CIFAR-10's training images: FOLDER/<class>/*")
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    given = parser.parse_args()
    flags = ["--data", f"folder:{given.folder}", "--test", "none"] if given.folder else []
    print("| variant | seed | better than … of 100 | found cell | median | best | H(α) | search |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for variant in given.variants.split(","):
        for seed in given.seeds.split(","):
            print(row(given.images, variant, int(seed), flags), flush=True)


if __name__ == "__main__":
    main()
