"""Run directories: damaged checkpoints, checkpoints of other content, damaged logs and options."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch
from fuzz.cases import Case, command, outcome, run_kind
from fuzz.mutations import change_bytes, change_tree, values
from torch import Tensor

from fastnas import Genotype, search
from fastnas.engine.checkpoint import load_checkpoint, save_checkpoint
from fastnas.engine.trained import load_trained
from fastnas.nn import DerivedNetwork
from fastnas.report.__main__ import main as report

SEARCH = shlex.split(
    "--data digits --limit 80 --image-size 8 --channels 4 --layers 1 --batch-size 20 --epochs 2 --strategy darts "
    "--stop-after 1 --device cpu --out"
)
SIZES = {"channels": 2, "layers": 3, "stem": "cifar"}


def prepare(folder: Path) -> None:
    """A search that was stopped, and the checkpoint of a training."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(search.main([*SEARCH, str(folder / "search")]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    (folder / "train").mkdir()
    genotype = Genotype.published("DARTS_V2")
    genotype.to_json(folder / "train" / "genotype.json")
    save_checkpoint(folder / "train" / "checkpoint.pt", training(genotype))


def training(genotype: Genotype) -> dict[str, Any]:
    """As much of the checkpoint of a training as whoever wants the network reads."""
    network = DerivedNetwork(genotype, channels=2, layers=3, num_classes=3, auxiliary=False)
    return {
        "options": {"network": {"genotype": "DARTS_V2", **SIZES}},
        "network": dict(network.state_dict()),
        "average": None,
        "images": {"classes": ["a", "b", "c"], "image_size": [8, 8], "count": 9},
        "clock": {"epoch": 1, "step": 0},
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and (first == second or first != first)


def one(case: Case) -> str:
    rng = case.rng
    kind = rng.choice(["train", "train", "train", "search", "report"])
    directory = case.folder / "run"
    shutil.copytree(case.folder.parent / ("train" if kind == "train" else "search"), directory)
    if kind == "train":
        return _trained(case, directory)
    if kind == "report":
        path = directory / rng.choice(["metrics.jsonl", "metrics.jsonl", "config.yaml", "genotype.json"])
        case.given = _damage(case, path)
        return "refused" if command(report, [str(directory)])[0] else "result"
    path = directory / rng.choice(["checkpoint.pt", "checkpoint.pt", "config.yaml", "metrics.jsonl", "genotype.json"])
    if path.name == "checkpoint.pt" and case.chance(0.6):
        state = load_checkpoint(path)
        state.pop("format")
        case.given = _other_state(case, state, path)
    else:
        case.given = _damage(case, path)
    return "refused" if command(search.main, ["--resume", str(directory)])[0] else "result"


def _trained(case: Case, directory: Path) -> str:
    """The network of a training that goes on."""
    path, whole = directory / "checkpoint.pt", load_checkpoint(directory / "checkpoint.pt")
    if case.chance(0.5):
        content = change_bytes(case.rng, path.read_bytes(), 2)
        case.given = repr(content)[:500]
        path.write_bytes(content)
        return outcome(
            lambda: load_checkpoint(path), lambda state: _check(same(state, whole), "other values were read")
        )
    state = {name: value for name, value in whole.items() if name != "format"}
    case.given = _other_state(case, state, path)
    return outcome(lambda: load_trained(directory), lambda network: network(torch.zeros(1, 3, 8, 8)))


def _other_state(case: Case, state: dict[str, Any], path: Path) -> str:
    """Writes a checkpoint in which something is another value, is missing or has another name."""
    value = case.rng.choice(
        [case.draw(values), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(7.0)]
    )
    changed = change_tree(case.rng, state, value)
    save_checkpoint(path, changed if isinstance(changed, dict) else {"x": changed})
    return repr(changed)[:500]


def _damage(case: Case, path: Path) -> str:
    """Changes bytes of a file, or a value of a line of JSON."""
    content = path.read_bytes()
    if path.suffix == ".jsonl" and case.chance(0.7):
        lines = content.decode().splitlines()
        place = case.rng.randrange(len(lines))
        lines[place] = json.dumps(change_tree(case.rng, json.loads(lines[place]), case.draw(values)))
        changed = "\n".join(lines).encode()
    else:
        changed = change_bytes(case.rng, content)
    path.write_bytes(changed)
    return f"{path.name}: {changed[:3000]!r}"


def _check(right: bool, what: str) -> None:
    assert right, what


def run(deadline: float, seed: int) -> dict[str, int]:
    """See `fuzz.cases.run_kind`."""
    return run_kind(one, deadline, seed, prepare)
