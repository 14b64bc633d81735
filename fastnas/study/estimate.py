"""--dry-run of a study: what would run, and what it would need, by steps that are measured in this process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.duration import in_words
from fastnas.cli.estimate import counted, estimated
from fastnas.cli.images import open_search_source, open_train_sources
from fastnas.cli.searching import search_parts
from fastnas.cli.training import training_parts
from fastnas.engine.forecast import Forecast
from fastnas.study.plan import Cell, StudyPlan, Unit
from fastnas.study.unit_options import search_options, stand_in, train_options

MEASURED = ("search", "train", "baseline")


def show(plan: StudyPlan, waiting: list[Unit], slots: int, console: Console) -> None:
    """Prints the runs that are waiting, the estimate of each cell and stage, and that of all.

    Args:
        plan: of the study.
        waiting: the units that would run.
        slots: runs at a time.
        console: where to.
    """
    counts = Counter(unit.stage for unit in waiting)
    stages = ", ".join(f"{count} {stage}" for stage, count in counts.items())
    print_text(console, f"{counted(len(waiting), 'run')} of {len(plan.units)} would run: {stages or 'none'}")
    total, memory, unknown = 0.0, 0.0, set[str]()
    for cell in plan.cells:
        known: dict[str, Forecast | None] = {}
        for stage in dict.fromkeys(unit.stage for unit in waiting if unit.cell == cell):
            units = [unit for unit in waiting if unit.cell == cell and unit.stage == stage]
            kind = "train" if stage == "baseline" else stage
            if kind not in known:
                known[kind] = _forecast(plan, cell, kind, console) if stage in MEASURED else None
            forecast = known[kind]
            seeds = ", ".join(str(seed) for seed in dict.fromkeys(unit.seed for unit in units))
            what = f"{stage:<9} {cell.label}: {counted(len(units), 'run')}, seeds {seeds}"
            if forecast is None:
                unknown.add(stage)
                print_text(console, f"{what}, time unknown before it has run")
                continue
            total += len(units) * forecast.seconds()
            memory = max(memory, forecast.peak_memory_mb)
            at_most = "at most " if forecast.at_most else ""
            print_text(console, f"{what}, {at_most}about {in_words(forecast.seconds())} each")
    if total:
        without = f", without {' and '.join(sorted(unknown))}" if unknown else ""
        print_text(
            console,
            f"estimate  about {in_words(total / max(1, min(slots, len(waiting))))} with {counted(slots, 'run')} at a "
            f"time ({in_words(total)} one after the other), {memory * min(slots, len(waiting)):.0f} MiB of memory at "
            f"its peak{without}",
        )
        if "train" in counts and "search" in plan.definition.stages:
            print_text(console, "          trainings are measured on a random cell in place of the one to be found")


def _forecast(plan: StudyPlan, cell: Cell, stage: str, console: Console) -> Forecast | None:
    """Of one run of a stage."""
    definition, search = plan.definition, None
    with TemporaryDirectory() as folder:
        if "search" in definition.stages:
            searching, _ = search_options(plan.settings(cell, "search"), definition.seeds[0])
            if stage == "search":
                return estimated(search_parts(searching), console, anyway=True)[1]
            search = stand_in(searching, Path(folder), open_search_source(searching.data).image_size)
        seed = (definition.train_seeds or definition.seeds)[0]
        training, _ = train_options(plan.settings(cell, "train"), seed, None, search)
        return estimated(
            training_parts(training, open_train_sources(training), Path("nowhere"), seed), console, anyway=True
        )[1]
