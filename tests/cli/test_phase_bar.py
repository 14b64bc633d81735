"""The bar of the phase in progress, in a notebook: one output, drawn anew, and cleared at the end."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fastnas.cli import phase_bar
from fastnas.cli.phase_bar import phase_bar as open_bar


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """What a notebook shows: for each output, everything that has stood in its place."""
    shown: list[list[dict[str, str]]] = []

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown.append([data])
        return SimpleNamespace(update=lambda new, raw: shown[-1].append(new))

    module = SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(phase_bar, "in_notebook", lambda: True)
    monkeypatch.setattr(phase_bar, "INTERVAL", 1e9)
    return shown


def test_in_a_notebook_one_output_is_drawn_anew(outputs: list[list[dict[str, str]]]) -> None:
    file = io.StringIO()
    console = Console(file=file, force_jupyter=False)
    with open_bar(console) as show:
        for step in range(1, 5):
            show("weights", step, 4)
        console.print("epoch 1")
        show("<b>", 1, 4)
    (drawn,) = outputs
    texts = [each["text/plain"].split(",")[0] for each in drawn]
    assert texts == ["", "weights 1/4", "weights 4/4", "<b> 1/4", ""]  # the steps between come too fast
    assert '<progress value="4" max="4"' in drawn[2]["text/html"]
    assert "&lt;b&gt; 1/4" in drawn[3]["text/html"]
    assert file.getvalue() == "epoch 1\n"


def test_the_bar_goes_away_after_an_error(outputs: list[list[dict[str, str]]]) -> None:
    def draw_and_stop() -> None:
        with open_bar(Console(file=io.StringIO())) as show:
            show("weights", 1, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_and_stop()
    assert outputs[0][-1]["text/html"] == ""


def test_nothing_is_drawn_on_a_quiet_console(outputs: list[list[dict[str, str]]]) -> None:
    with open_bar(Console(quiet=True)) as show:
        show("weights", 1, 4)
    assert outputs == []


def test_a_terminal_has_a_bar_and_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase_bar, "INTERVAL", 0.0)
    for terminal in (True, False):
        file = io.StringIO()
        with open_bar(Console(file=file, force_terminal=terminal, force_jupyter=False, width=80)) as show:
            show("weights", 1, 4)
        assert ("weights" in file.getvalue()) is terminal
