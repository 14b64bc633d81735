"""Charts: they show the numbers of the run, and only for what the run recorded."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_chart_reader import SVG, by_name, complete_run, hovers, run_of, texts

from fastnas.report.alphas import weight_charts
from fastnas.report.chart import Chart, colour, spread
from fastnas.report.curves import epoch_charts, time_charts
from fastnas.report.palette import COLOURS
from fastnas.report.population import BARS, population_charts
from fastnas.report.run import Run

# --- the frame ---


def test_svg_is_well_formed_deterministic_and_free_of_stand_in_colours() -> None:
    def drawing() -> str:
        chart = Chart("a", "Loss & <more>")
        chart.label("epoch", "nats")
        chart.axes.plot([0, 1, 2], [1, 3, 2], color=colour("accent"))
        chart.axes.text(1, 2, "0.123456 #fa5001 font: 12px x", color=colour("ink"))
        chart.direct_labels([(2.0, "end", "contrast")])
        chart.hover_columns([0, 1, 2], ["first <b>", "second", "third"])
        return chart.svg()

    text = drawing()
    assert text == drawing()
    root = ET.fromstring(text)
    assert root.findtext(f"{SVG}title") == "Loss & <more>"
    assert "0.123456 #fa5001 font: 12px x" in [
        element.text for element in root.iter(f"{SVG}text")
    ]  # text stays as it is
    assert "var(--accent)" in text
    assert not re.search(r"<[^>]*#fa5", text)
    assert not re.search(r"<[^>]*\d\.\d{3}", text)
    assert "<style" not in text
    assert "metadata" not in text
    assert not re.search(r'<g [^>]*id="', text)


@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_becomes_its_custom_property(name: str) -> None:
    chart = Chart("a", "a")
    chart.axes.plot([0, 1], [0, 1], color=colour(name))
    assert f"var(--{name})" in chart.svg()


@given(st.lists(st.floats(-50, 300), max_size=12), st.floats(1, 30))
def test_labels_are_spread(wanted: list[float], distance: float) -> None:
    wanted.sort()
    places = spread(wanted, distance, (0.0, 200.0))
    assert len(places) == len(wanted)
    assert all(b - a >= distance - 1e-9 for a, b in pairwise(places))
    if len(wanted) * distance <= 200:
        assert all(-1e-9 <= place <= 200 + 1e-9 for place in places)
    clear = all(b - a >= distance for a, b in pairwise(wanted))
    if clear and all(0 <= want <= 200 for want in wanted):
        assert places == pytest.approx(wanted)


def label_heights(chart: Chart) -> dict[str, float]:
    return {text.get_text(): text.get_position()[1] * chart.size[1] for text in chart.figure.texts}


def test_labels_stand_beside_the_ends_of_their_curves() -> None:
    run = complete_run(epochs=20, warm_up=5, samples=2, population=8)
    charts = by_name([*epoch_charts(run), *population_charts(run), *weight_charts(run)])
    for name, label, value in [
        ("loss", f"training {run.epochs[-1]['train_loss']:.3f}", run.epochs[-1]["train_loss"]),
        ("population_fitness", f"taken {run.updates[-1]['best_fitness']:.3f}", run.updates[-1]["best_fitness"]),
        ("sigma", f"{run.updates[-1]['sigma']:.3g}", run.updates[-1]["sigma"]),
    ]:
        chart = charts[name]
        chart.svg()
        height = float(chart.axes.transData.transform((0, value))[1])
        assert label_heights(chart)[label] == pytest.approx(height, abs=8)


def test_labels_fit_into_the_drawing() -> None:
    run = complete_run(epochs=8, warm_up=2, samples=1, population=5)
    for chart in [*epoch_charts(run), *population_charts(run), *weight_charts(run), *time_charts(run)]:
        for text in chart.figure.texts:
            x = text.get_position()[0] * chart.size[0]
            assert x + len(text.get_text()) * 0.62 * text.get_fontsize() <= chart.size[0], text.get_text()


# --- curves ---


def test_a_curve_appears_only_for_what_was_recorded() -> None:
    assert list(epoch_charts(run_of())) == []
    assert by_name(epoch_charts(run_of({"train_loss": 1.0}))).keys() == {"loss"}
    assert by_name(epoch_charts(run_of({"learning_rate": 0.1, "valid_accuracy": None}))).keys() == {"learning_rate"}
    everything = by_name(epoch_charts(complete_run(epochs=3, warm_up=1)))
    assert list(everything) == ["loss", "accuracy", "entropy", "skips", "sigma", "learning_rate"]


def test_curves_state_their_last_value_and_every_value_on_hover() -> None:
    run = run_of({"train_accuracy": 0.25, "valid_accuracy": 0.125}, {"train_accuracy": 0.5, "valid_accuracy": None})
    chart = by_name(epoch_charts(run))["accuracy"]
    assert {"training 50.0 %", "validation 12.5 %", "accuracy (%)", "epoch"} <= set(texts(chart))
    assert hovers(chart) == ["epoch 1\ntraining 25.0 %\nvalidation 12.5 %", "epoch 2\ntraining 50.0 %"]


def test_undefined_values_leave_a_curve_drawable() -> None:
    run = run_of({"train_loss": 1.0}, {"train_loss": math.nan}, {"train_loss": math.inf}, {"train_loss": 0.5})
    assert hovers(by_name(epoch_charts(run))["loss"]) == ["epoch 1\ntraining 1.000", "epoch 4\ntraining 0.500"]


@pytest.mark.parametrize("count", [5, 7, 8])
def test_entropy_marks_the_logarithm_of_the_number_of_candidates(count: int) -> None:
    weights = {"normal": [[1 / count] * count] * 2}
    run = run_of({"alpha_entropy": {"normal": 1.0}, "op_weights": weights})
    chart = by_name(epoch_charts(run))["entropy"]
    assert f"ln {count} = {math.log(count):.3f}" in texts(chart)
    assert f"all {count} candidates" in chart.note
    assert chart.axes.get_ylim()[1] > math.log(count)


def test_entropy_without_a_known_number_of_candidates_has_no_ceiling() -> None:
    chart = by_name(epoch_charts(run_of({"alpha_entropy": {"normal": 1.0}})))["entropy"]
    assert not any("ln" in text for text in texts(chart))
    assert chart.note == ""


def test_constant_and_single_values_can_be_drawn() -> None:
    for values in ([0.0], [0.0, 0.0], [3.0, 3.0]):
        for chart in epoch_charts(run_of(*({"learning_rate": v, "train_loss": v} for v in values))):
            ET.fromstring(chart.svg())


def test_a_sigma_of_zero_keeps_a_linear_axis() -> None:
    updates = [{"epoch": 0, "step": i, "sigma": sigma} for i, sigma in enumerate((1.0, 0.0))]
    chart = by_name(epoch_charts(Run(Path("run"), updates=updates)))["sigma"]
    assert chart.axes.get_yscale() == "linear"
    assert "σ" in texts(chart)
    ET.fromstring(chart.svg())


def test_time_is_split_by_phase() -> None:
    seconds = {"train": 30.0, "strategy": 60.0, "valid": 9.0, "data": 1.0}
    (chart,) = time_charts(run_of({"seconds": seconds}, {"seconds": seconds}))
    assert {"strategy 60%", "training 30%", "validation 9%", "waiting for data 1%", "time (s)"} <= set(texts(chart))
    expected = "epoch 2\nwaiting for data 1.0 s\nvalidation 9.0 s\ntraining 30.0 s\nstrategy 60.0 s"
    assert hovers(chart)[1] == expected
    assert list(time_charts(run_of({"train_loss": 1.0}))) == []


@pytest.mark.parametrize(("seconds", "unit"), [(299, "s"), (3000, "min"), (20000, "h")])
def test_time_has_a_fitting_unit(seconds: float, unit: str) -> None:
    (chart,) = time_charts(run_of({"seconds": {"train": seconds}}))
    assert f"time ({unit})" in texts(chart)


def test_time_of_an_unknown_phase_and_of_missing_epochs_is_shown() -> None:
    run = run_of({"seconds": {"train": 1.0}}, {}, {"seconds": {"train": 1.0, "sampling": 2.0}})
    (chart,) = time_charts(run)
    assert any(text.startswith("sampling") for text in texts(chart))
    assert hovers(chart)[-1].startswith("epoch 3\nsampling 2.0 s")


# --- population ---


def test_population_pools_the_samples_of_a_step() -> None:
    def record(step: int, sample: int, fitness: list[Any]) -> dict[str, Any]:
        return {"epoch": 4, "step": step, "sample": sample, "generation": 0, "fitness": fitness}

    updates = [{"epoch": 4, "step": 0, "best_fitness": 1.0, "current_accuracy": 0.5}]
    records = [record(0, 0, [1.0, 2.0, None]), record(0, 1, [3.0, 4.0, 5.0]), record(1, 0, [7.0])]
    charts = by_name(population_charts(Run(Path("run"), populations=records, updates=updates)))
    assert list(charts) == ["population_fitness"]  # no accuracy was recorded
    assert hovers(charts["population_fitness"]) == [
        "evolution step 1\nall 1.000 to 5.000\nmiddle half 2.000 to 4.000\nmedian 3.000\ntaken 1.000",
        "evolution step 2\nall 7.000 to 7.000\nmiddle half 7.000 to 7.000\nmedian 7.000",
    ]


def test_population_marks_who_was_taken_and_alpha() -> None:
    run = complete_run(epochs=5, warm_up=1, samples=3, population=10)
    charts = by_name(population_charts(run))
    last = run.updates[-1]
    assert f"taken {last['best_fitness']:.3f}" in texts(charts["population_fitness"])
    wanted = {f"taken {100 * last['best_accuracy']:.1f} %", f"α {100 * last['current_accuracy']:.1f} %"}
    assert wanted <= set(texts(charts["population_accuracy"]))
    assert len(hovers(charts["population_accuracy"])) == 4


@pytest.mark.parametrize(("form", "reason"), [(None, True), ("eq3", True), ("rebased", False), ("loss", False)])
@pytest.mark.parametrize("winner", ["accuracy", "fitness"])
def test_the_chart_says_why_somebody_worse_than_alpha_was_taken(form: str | None, reason: bool, winner: str) -> None:
    how = {"winner": winner} if form is None else {"winner": winner, "form": form}
    updates = [
        {"epoch": i, "step": i, "best_fitness": 1.0, "best_accuracy": taken, "current_accuracy": 0.5, **how}
        for i, taken in enumerate((0.4, 0.5, 0.6))
    ]
    records = [{"epoch": i, "step": i, "fitness": [1.0], "accuracy": [0.4]} for i in range(3)]
    charts = by_name(population_charts(Run(Path("run"), populations=records, updates=updates)))
    note = charts["population_accuracy"].note
    assert "In 1 of 3 steps the individual that was taken is less accurate than α." in note
    assert ("eq3" in note) == reason
    assert ("need not have the lowest fitness" in charts["population_fitness"].note) == (winner == "accuracy")


def test_strategies_that_evaluate_architectures_mark_the_best_so_far() -> None:
    records = [{"epoch": 0, "step": 0, "accuracy": [0.25, 0.75]}]
    updates = [{"epoch": 0, "step": 0, "evaluated": 2, "best_accuracy": 0.75}]
    chart = by_name(population_charts(Run(Path("run"), populations=records, updates=updates)))["population_accuracy"]
    assert "best so far 75.0 %" in texts(chart)
    assert "taken" not in chart.note


def test_many_steps_are_pooled() -> None:
    records = [{"epoch": i, "step": i, "fitness": [float(i)]} for i in range(1001)]
    chart = by_name(population_charts(Run(Path("run"), populations=records)))["population_fitness"]
    found = hovers(chart)
    assert len(found) <= BARS
    assert found[0].startswith("evolution steps 1 to 5\nall 0.000 to 4.000")
    assert found[-1].startswith("evolution step 1001\n")


def test_a_single_individual_can_be_drawn() -> None:
    for chart in population_charts(complete_run(epochs=1, warm_up=0, samples=1, population=1)):
        ET.fromstring(chart.svg())


def test_the_loss_of_alpha_is_drawn_with_its_terms() -> None:
    records = [{"epoch": 0, "loss": 3.0, "terms": {"L_val": 2.0, "γ·L_ent": 1.0}}]
    records.append({"epoch": 1, "loss": 2.5, "terms": {"L_val": 1.75, "γ·L_ent": 0.75}})
    chart = by_name(epoch_charts(Run(Path("run"), alphas=records)))["alpha_loss"]
    words = " ".join(texts(chart))
    for label in ("sum", "L_val", "γ·L_ent", "2.500", "1.750", "0.750"):
        assert label in words
    alone = by_name(epoch_charts(Run(Path("run"), alphas=[{"epoch": 0, "loss": 3.0}])))["alpha_loss"]
    assert "sum" not in " ".join(texts(alone))
    assert "alpha_loss" not in by_name(epoch_charts(Run(Path("run"))))
