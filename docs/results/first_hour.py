"""The first hour of a new user, timed: `first_hour.py FOLDER [REPOSITORY]`.

Clones the repository (by default the one that this file is in) into FOLDER, runs `make demo`, writes scanned digits as
a folder of PNG files, which stand for images of one's own, and does with them what the README says: search, training
with two seeds, evaluation, export, and a program that reads the network without fastnas. Prints the table of
first-hour.md. FOLDER must not exist; a step that fails ends the program, and its output is in FOLDER/<step>.log.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

IMAGES = """
from pathlib import Path
from PIL import Image
from sklearn.datasets import load_digits
digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
    folder = Path("images", f"digit-{label}")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9375).astype("uint8")).resize((16, 16)).save(folder / f"{number:04}.png")
"""
WITHOUT = """
import sys
sys.modules["fastnas"] = None  # an import of it would fail
sys.path.insert(0, "deploy")
import torch, network
model = network.load("deploy/network.json")
with torch.no_grad():
    image = model.read_image(sorted(__import__("pathlib").Path("images/digit-7").iterdir())[0])
    print("a seven is taken for", model.classes[model(model.normalise(image[None])).argmax()])
"""
STEPS = {
    "clone": "git clone --quiet {repository} fastnas",
    "make demo": "make -C fastnas demo",
    "images": "{python} -c {images}",
    "what a search would need": "{python} -m fastnas.search --preset demo --data folder:images --dry-run",
    "search": "{python} -m fastnas.search --preset demo --data folder:images --out runs/search",
    "train, 2 seeds": "{python} -m fastnas.train --from runs/search --epochs 20 --channels 12 --layers 5 --seeds 1,2 "
    "--out runs/trained",
    "evaluate": "{python} -m fastnas.evaluate runs/trained/seed-1 --data folder:images",
    "export": "{python} -m fastnas.export runs/trained/seed-1 --with-preprocessing --program deploy/network.pt2 "
    "--save deploy/network.json --standalone deploy/network.py",
    "load without fastnas": "{python} -c {without}",
}
LEFT = {
    "clone": "fastnas", "make demo": "fastnas/.venv", "images": "images", "search": "runs/search",
    "train, 2 seeds": "runs/trained", "export": "deploy",
}  # fmt: skip
"""What a step leaves behind."""


def size(path: Path) -> str:
    count = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def timed(command: str, folder: Path, log: Path) -> tuple[float, float]:
    """Runs a command; returns seconds, and the largest memory of one of its processes in MiB."""
    begin = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(shlex.split(command), cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"failed: {command}; its output is in {log}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def said(log: Path) -> str:
    """The last line that says what came out."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    wanted = ("estimate", "supernet, validation", "over ", "test accuracy", "top-1", "wrote", "a seven")
    return next((line for line in reversed(lines) if any(word in line for word in wanted)), "")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(target: str, repository: str = str(Path(__file__).resolve().parents[2])) -> None:
    folder = Path(target).resolve()
    folder.mkdir(parents=True)
    python = folder / "fastnas" / ".venv" / "bin" / "python"
    words = {
        "python": shlex.quote(str(python)), "repository": shlex.quote(repository),
        "images": shlex.quote(IMAGES), "without": shlex.quote(WITHOUT),
    }  # fmt: skip
    print("| step | time | peak memory | left behind | what it says |\n|---|---|---|---|---|", flush=True)
    whole = 0.0
    for step, command in STEPS.items():
        log = folder / f"{step.replace(' ', '-').replace(',', '')}.log"
        seconds, memory = timed(command.format(**words), folder, log)
        whole += seconds
        left = size(folder / LEFT[step]) if step in LEFT else ""
        print(f"| {step} | {seconds:,.0f} s | {memory:,.0f} MiB | {left} | {said(log)} |", flush=True)
    print(f"| all | {whole / 60:,.1f} min | | | |\n")
    head = ["git", "-C", str(folder / "fastnas"), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    print(f"commit {commit}; {len(os.sched_getaffinity(0))} cores of {processor()}; Python {platform.python_version()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
