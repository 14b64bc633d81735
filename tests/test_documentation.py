"""Examples in docstrings, in README.md and in docs/ run, so that they stay correct."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastnas import Genotype, compat, export, nn, ops

ROOT = Path(__file__).parents[1]
OPERATORS = [name for name in ops.__all__ if not name.endswith("_reference")]
PUBLIC = {**{f"ops.{name}": getattr(ops, name) for name in OPERATORS}, "nn.MixedOp": nn.MixedOp}


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_of_docstrings(name: str) -> None:
    thing = PUBLIC[name]
    module = importlib.import_module(thing.__module__)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(thing, name, module=module) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        test.globs = {}  # an example imports what it needs
        output: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=output.append)
        assert not failed, "".join(output)


@pytest.mark.parametrize("name", OPERATORS)
def test_docstrings_say_everything(name: str) -> None:
    text = inspect.getdoc(getattr(ops, name)) or ""
    wanted = ["Args:", "Returns:", ">>> "] + ([] if name == "normalization_table" else ["Raises:"])
    assert [part for part in wanted if part not in text] == []


def python_blocks(page: str) -> list[tuple[int, str]]:
    """Line and text of the Python code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in blocks]


def execute(page: str, blocks: list[tuple[int, str]]) -> dict[str, Any]:
    """Runs the blocks one after another in one namespace, as a reader would who types them."""
    namespace: dict[str, Any] = {}
    for line, text in blocks:
        code = compile("\n" * (line - 1) + text, str(ROOT / page), "exec")  # errors name the line of the page
        exec(code, namespace)
    return namespace


@pytest.mark.parametrize("page", ["docs/operators.md", "docs/extending.md"])
def test_examples_of_pages(page: str) -> None:
    blocks = python_blocks(page)
    assert blocks
    execute(page, blocks)


def test_examples_of_the_drop_in_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, so that what it prints and undoes is what it made before."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    blocks = python_blocks("docs/drop-in.md")
    names = execute("docs/drop-in.md", blocks)
    shown = re.search(r"^```text\n(.*?)^```", (ROOT / "docs/drop-in.md").read_text(encoding="utf-8"), re.M | re.S)
    assert shown is not None
    assert capsys.readouterr().out == shown[1]
    assert {type(cell).__name__ for cell in names["model"].cells} == {"Cell"}
    assert not compat.report(names["model"]).fused


def test_examples_of_the_deploy_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All ways of running the network name the class that it names itself."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install fastnas[export]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images = {"classes": list("abcdefgh"), "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    net = nn.DerivedNetwork(Genotype.published("DARTS_V2"), channels=4, layers=3, num_classes=8).eval()
    Path("runs/flowers-trained").mkdir(parents=True)
    net.save("runs/flowers-trained/network.json", {"images": images})
    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)  # [H, W, C]
    Image.fromarray(pixels.numpy()).save("photo.jpg")

    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    export_words, program_words = map(shlex.split, re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S))
    assert export_words[:3] == ["python", "-m", "fastnas.export"]
    assert export.main([word for word in export_words[3:] if word.strip()]) == 0
    capfd.readouterr()
    names = execute("docs/deploy.md", python_blocks("docs/deploy.md"))
    with torch.no_grad():
        shares = net(torch.from_numpy(names["images"])).softmax(-1)[0]  # [8]
    expected = images["classes"][shares.argmax()]
    assert capfd.readouterr().out.split() == [expected] * 3
    torch.testing.assert_close(names["logits"].softmax(-1)[0], shares, rtol=1e-4, atol=1e-4)
    subprocess.run([sys.executable, *program_words[1:]], check=True)
    assert capfd.readouterr().out.startswith(f"photo.jpg: {expected} ")


def test_the_page_of_operators_lists_all() -> None:
    text = (ROOT / "docs/operators.md").read_text(encoding="utf-8")
    assert [name for name in OPERATORS if f"[`{name}`](../fastnas/ops/" not in text] == []


def test_operators_in_readme() -> None:
    (block,) = [block for block in python_blocks("README.md") if "import nn, ops" in block[1]]
    names = execute("README.md", [block])
    assert [names[name].shape[0] for name in ("y", "node", "batch")] == [8, 8, 64]


def test_links_of_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
