"""fastnas.train, fastnas.evaluate and fastnas.export as commands: what they write, print and refuse."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fastnas import data, evaluate, export, report, train
from fastnas.engine.retrain import Retrain
from fastnas.engine.trained import load_trained, open_source
from fastnas.nn import DerivedNetwork

SMALL = [
    *("--data", "digits", "--limit", "120", "--image-size", "8", "--genotype", "DARTS_V2", "--channels", "2"),
    *("--layers", "3", "--batch-size", "16", "--epochs", "1", "--cutout", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    out = tmp_path_factory.mktemp("train") / "run"
    assert train.main([*SMALL, "--out", str(out)]) == 0
    return out


def test_several_seeds_are_summed_up(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "seeds"
    assert train.main([*SMALL, "--seeds", "3,5", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    accuracies = [row["top1"] for row in results["runs"]]
    assert [row["seed"] for row in results["runs"]] == [3, 5]
    assert results["mean"] == pytest.approx(sum(accuracies) / 2)
    assert results["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert results["best"] == max(accuracies)
    assert "over 2 seeds" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert all(f'href="seed-{seed}/report.html"' in page for seed in (3, 5))
    assert re.search(r"<h1>\w+ cell on digits, \d+ epochs?, 2 seeds</h1>", page)
    assert f"--seeds 3,5 --out {out}</code>" in page
    assert "recipe.learning_rate" in page
    assert "top-5" in page
    assert (out / "seed-3" / "report.html").exists()
    (out / "report.html").unlink()
    from fastnas.report.__main__ import main

    assert main([str(out)]) == 0
    assert (out / "report.html").read_text() == page


def test_resume_goes_on_with_the_seed_that_was_stopped(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert train.main([*SMALL, "--epochs", "2", "--seeds", "1,2", "--stop-after", "1", "--out", str(out)]) == 0
    assert "continue with: python -m fastnas.train --resume" in capsys.readouterr().out.replace("\n", " ")
    assert not (out / "seed-2").exists()
    assert train.main(["--resume", str(out)]) == 0
    assert len(json.loads((out / "results.json").read_text())["runs"]) == 2
    assert train.main(["--resume", str(out)]) == 0
    assert "seed 1 is done" in capsys.readouterr().out


def test_a_failure_leaves_the_run_resumable(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(self: Retrain, images: Any, labels: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Retrain, "_step", fail)
        assert train.main([*SMALL, "--out", str(tmp_path / "run")]) == 130
    assert train.main(["--resume", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--genotype", "DARTS_V9"], "neither a published genotype nor an existing file: did you mean DARTS_V"),
        (["--data", "digitz"], "unknown data source"),
        (["--select", "best_valid"], "--select best_valid needs held-out images"),
        (["--select", "best_test", "--test", "none"], "--select best_test needs test images"),
        (["--auxiliary", "True"], "--auxiliary needs images of 29 to 40 pixels"),
        (["--preset", "darts"], "unknown preset 'darts': expected one of darts-cifar10"),
        (["--resume", "gone"], "nothing to resume in gone"),
        (["--test", "folder:gone"], "Or train without a test: --test none"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: Any, monkeypatch: Any, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Images of several sizes in two classes, train and val; one file is damaged."""
    generator = np.random.default_rng(0)
    for split, number in ((split, number) for split in ("train", "val") for number in range(8)):
        folder = tmp_path / "images" / split / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40 + number, 64 - 2 * number, 3), dtype=np.uint8)  # [H, W, 3]
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "images" / "train" / "class0" / "broken.png").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.mark.parametrize("kind", ["folder", "imagenet"])
def test_the_imagenet_recipe_on_photographs(photographs: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    out, spec = tmp_path / "run", f"{kind}:{photographs}"
    small = ["--channels", "4", "--layers", "3", "--batch-size", "4", "--epochs", "1", "--image-size", "32"]
    more = ["--auxiliary", "False", "--skip-unreadable", "--workers", "1", "--device", "cpu", "--out", str(out)]
    arguments = ["--preset", "darts-imagenet", "--genotype", "PDARTS", "--data", spec, *small, *more]
    assert train.main(arguments) == 0
    assert "1 unreadable file left out:" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    augmentation = lines[0]["data"]["augmentation"]
    assert (augmentation["crop_area"], augmentation["crop_padding"]) == ([0.08, 1.0], 0)
    assert augmentation["color_jitter"] == [0.4, 0.4, 0.4, 0.2]
    assert "flip true; crop area 0.08, 1.0; color jitter 0.4, 0.4, 0.4, 0.2<" in (out / "report.html").read_text()
    assert evaluate.main([str(out), "--data", spec, "--runs", "0", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["image_size"] == [3, 32, 32]
    assert found["evaluation"]["loss"] == pytest.approx(lines[-1]["test"]["loss"])
    assert open_source(DerivedNetwork.load(out), spec, "test").shorter_side == 37


def test_grey_images_cannot_be_jittered(tmp_path: Path, capsys: Any) -> None:
    assert train.main([*SMALL, "--hue", "0.1", "--out", str(tmp_path / "run")]) == 2
    assert "digits has 1 channels; set brightness, contrast, saturation and hue to 0" in capsys.readouterr().err


def test_a_run_is_never_overwritten(run: Path, capsys: Any) -> None:
    assert train.main([*SMALL, "--out", str(run)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_evaluate_repeats_the_test_of_the_run(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "evaluation.json"
    flags = ["--data", "digits", "--image-size", "8", "--runs", "3", "--json", str(out)]
    assert evaluate.main([str(run), *flags]) == 0
    found = json.loads(out.read_text())
    tested = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["test"]
    assert found["evaluation"]["confusion"] == tested["confusion"]
    assert found["evaluation"]["loss"] == pytest.approx(tested["loss"])
    assert [(each["batch"], each["runs"]) for each in found["latency"]] == [(1, 3), (64, 3)]
    assert all(0 < each["median"] <= each["p95"] for each in found["latency"])
    assert found["peak_memory_mb"] > 0
    page = (run / "evaluation.html").read_text()
    assert f"python -m fastnas.evaluate {run} --data digits" in page
    assert "Confusion matrix" in page
    assert evaluate.main([str(run), *flags[:4], "--runs", "0", "--report", str(tmp_path / "page.html")]) == 0
    assert "Confusion matrix" in (tmp_path / "page.html").read_text()
    text = " ".join(capsys.readouterr().out.split())
    assert f"top-1 {tested['top1']:.2%}" in text
    assert f"{found['parameters']:,} parameters" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--data", "npz:{other}"], "the classes of npz:"),
        (["gone.json"], "cannot read the network"),
        (["{run}", "--data", "digits", "--image-size", "8", "--runs", "0", "--json", "gone/x.json"], "cannot write"),
    ],
)
def test_evaluate_explains(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, arguments: list[str], message: str
) -> None:
    import numpy as np

    other = tmp_path / "other.npz"
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    np.savez(other, images=images, labels=labels, test_images=images, test_labels=labels)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([word.format(run=run, other=other) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_export_writes_what_is_asked(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    onnx, program, saved, standalone = (tmp_path / "new" / name for name in ("a/n.onnx", "b/n.pt2", "n.json", "n.py"))
    files = ["--onnx", str(onnx), "--program", str(program), "--save", str(saved), "--standalone", str(standalone)]
    if find_spec("onnxruntime") is None:
        files = files[2:]
    assert export.main([str(run), *files]) == 0
    output = capsys.readouterr().out
    assert all(f"wrote {path}" in output for path in map(Path, files[1::2]))
    if "--onnx" in files:
        assert re.search(r"checked with onnxruntime: its logits differ from PyTorch's by at most \d\.\de-\d\d", output)
    assert DerivedNetwork.load(saved).about == DerivedNetwork.load(run).about
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert export.main([str(run), "--save", str(saved), "--threads", "3"]) == 0
    assert threads == [3]
    assert {"mean", "std", "classes", "image_size"} <= set(DerivedNetwork.load(saved).about["images"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to write: give --onnx FILE"),
        (["--save", "n.json", "--with-preprocessing"], "--with-preprocessing is for --onnx and --program"),
        (["--program", "file/n.pt2"], "cannot make the folder 'file': File exists"),
    ],
)
def test_export_explains(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert export.main([str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unfinished_training_knows_its_images(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train.main([*SMALL, "--epochs", "2", "--stop-after", "1", "--out", str(out)]) == 0
    stopped = load_trained(out).about
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    del checkpoint["about"]  # as those of 0.1.0
    (tmp_path / "old").mkdir()
    torch.save(checkpoint, tmp_path / "old" / "checkpoint.pt")
    shutil.copy(out / "genotype.json", tmp_path / "old")
    old = load_trained(tmp_path / "old").about["images"]
    assert old == {name: stopped["images"][name] for name in ("classes", "image_size")}
    assert train.main(["--resume", str(out)]) == 0
    assert load_trained(out).about == stopped
    assert stopped["images"]["mean"] == pytest.approx(data.open("digits", image_size=8).statistics()[0])


def test_print_config_is_a_config(tmp_path: Path, capsys: Any) -> None:
    assert train.main(["--preset", "egnas-imagenet", "--genotype", "PDARTS", "--print-config"]) == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    assert train.main(["--config", str(path), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(path.read_text())


def test_the_report_of_a_training(run: Path) -> None:
    page = report.write_report(run).read_text()
    for words in ("Training finished", "Test accuracy", "Confusion matrix", "The weights of epoch 1, the last one"):
        assert words in page
    assert "Operation weights" not in page
