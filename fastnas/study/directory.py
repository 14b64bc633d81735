"""The directory of a study: its plan, the state of its units, what is chosen, and who is at work on what."""

from __future__ import annotations

import contextlib
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastnas.atomic_file import replace_file
from fastnas.cli.run import is_finished
from fastnas.cli.run_directory import create_directory
from fastnas.cli.run_lock import RunLock
from fastnas.errors import UserError
from fastnas.input_file import read_json
from fastnas.report.run import read_run
from fastnas.study.definition import FILE as STUDY
from fastnas.study.definition import Definition, read_definition
from fastnas.study.plan import FILE as PLAN
from fastnas.study.plan import StudyPlan, Unit, changed, moves_choice

CHOSEN = "chosen.json"
END = {"evaluate": "evaluate.json", "compare": "report.html"}
"""The last file that a unit writes, where it is no run with records of its own."""


@dataclass(frozen=True)
class StudyDirectory:
    """A directory, and the plan of the study in it."""

    path: Path
    plan: StudyPlan

    @classmethod
    def open(cls, path: Path) -> Self:
        """The study in a directory. UserError if there is none."""
        if not (path / STUDY).is_file():
            raise UserError(f"{path} holds no study: it has no {STUDY}; give the --out of a study.")
        return cls(path.absolute(), StudyPlan(read_definition(path)))

    @classmethod
    def begin(cls, path: Path, wanted: Definition) -> Self:
        """The directory of a new study, or of one that is there and goes on, perhaps with more cells and seeds.

        Raises:
            UserError: it cannot be made, or holds another study or files that none has written.
        """
        create_directory(path)
        now = StudyPlan(wanted)
        if (path / STUDY).exists():
            study = cls.open(path)
            if (what := changed(study.plan, now)) is not None:
                raise UserError(
                    f"{path} holds a study with another plan: {what}. Only cells and seeds can be added: give another "
                    "--out."
                )
            if moves_choice(study.plan, now) and study.has_trained:
                raise UserError(
                    f"{path}: a search of each cell has been chosen and trained, so that none can be added by more "
                    "seeds: give another --out."
                )
        elif found := sorted({each.name for each in path.iterdir() if not each.name.startswith(".")} - {STUDY, PLAN}):
            raise UserError(f"{path} holds {', '.join(found[:5])}, which no study has written: give another --out.")
        study = cls(path.absolute(), now)
        for name, text in (
            (STUDY, wanted.to_yaml()),
            (PLAN, json.dumps(now.to_dict(), indent=1, ensure_ascii=False) + "\n"),
        ):
            file = study.path / name
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                replace_file(file, text, "the plan")
        return study

    @property
    def has_trained(self) -> bool:
        """Whether a training of any unit has begun."""
        return any(
            self.folder(unit).exists() for unit in self.plan.units.values() if unit.stage in ("train", "baseline")
        )

    # --- units ---

    def folder(self, unit: Unit) -> Path:
        return self.path / unit.directory

    def beside(self, unit: Unit, ending: str) -> Path:
        """A file beside the directory of a unit."""
        folder = self.folder(unit)
        return folder.with_name(folder.name + ending)

    def is_finished(self, unit: Unit) -> bool:
        folder = self.folder(unit)
        return (folder / END[unit.stage]).is_file() if unit.stage in END else is_finished(folder)

    def claim(self, unit: Unit) -> RunLock:
        """The right to work on a unit, for whoever opens it as a context; InUseError if somebody else has it."""
        folder = self.folder(unit)
        create_directory(folder.parent)
        return RunLock(folder.parent, f"{folder.name}.claim")

    def is_claimed(self, unit: Unit) -> bool:
        """Whether a living process works on it, on whatever machine."""
        folder = self.folder(unit)
        return RunLock(folder.parent, f"{folder.name}.claim").is_held()

    def failure(self, unit: Unit) -> dict[str, Any] | None:
        """What is recorded of a failure since the unit was last begun; None for none."""
        path = self.beside(unit, ".failed.json")
        with contextlib.suppress(UserError):
            record = read_json(path, path.name, "")
            return record if isinstance(record, dict) else None
        return None

    def fail(self, unit: Unit, error: str, seconds: float, **more: Any) -> None:
        """Records a failure."""
        finished_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        record = {"error": error, "seconds": seconds, "finished_at": finished_at, **more}
        create_directory(self.folder(unit).parent)
        replace_file(self.beside(unit, ".failed.json"), json.dumps(record, indent=1) + "\n", "the failure")

    def forget_failure(self, unit: Unit) -> None:
        self.beside(unit, ".failed.json").unlink(missing_ok=True)

    # --- what is chosen ---

    def chosen(self) -> dict[str, Any]:
        """Of each cell, by its slug, the search that was chosen."""
        path = self.path / CHOSEN
        found = read_json(path, str(path), "remove it: it is written again") if path.exists() else {}
        return found if isinstance(found, dict) else {}

    def source(self, unit: Unit) -> Unit | None:
        """The search whose genotype a training takes; None where the options name it. UserError before it is known."""
        if not unit.needs:
            return None
        if not self.plan.chooses:
            return self.plan.units[unit.needs[0]]
        chosen = self.chosen().get(unit.cell.slug)
        if chosen is None:
            raise UserError(f"no search of the cell {unit.cell.label} has been chosen yet.")
        return self.plan.units[chosen["unit"]]

    def choose(self, unit: Unit) -> None:
        """Chooses among the finished searches that a training needs: the best validation accuracy, the first of equal
        ones. What has been trained already stays chosen."""
        chosen, slug = self.chosen(), unit.cell.slug
        begun = (each for each in self.plan.units.values() if each.needs == unit.needs)
        if slug in chosen and any(self.folder(each).exists() for each in begun):
            return
        best: tuple[float, Unit, Any] | None = None
        searches = [self.plan.units[name] for name in unit.needs if self.is_finished(self.plan.units[name])]
        for search in searches:
            run = read_run(self.folder(search))
            accuracy = -1.0 if run.valid_accuracy is None else run.valid_accuracy[0]
            if run.genotype is not None and (best is None or accuracy > best[0]):
                best = accuracy, search, run.genotype
        if best is None:
            raise UserError(f"no search of the cell {unit.cell.label} has found a genotype.")
        accuracy, search, genotype = best
        record = {
            "unit": search.id,
            "genotype": genotype.to_dict(),
            "by": "valid_accuracy",
            "value": accuracy,
            "of": len(searches),
        }
        if chosen.get(slug) != record:
            replace_file(self.path / CHOSEN, json.dumps(chosen | {slug: record}, indent=1) + "\n", "the choice")
