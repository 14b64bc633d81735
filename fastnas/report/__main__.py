"""``python -m fastnas.report RUN_DIR``: writes the report of a run directory, or of a study, again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import command, print_text, program_name
from fastnas.cli.own_code import import_space
from fastnas.option_types import Options
from fastnas.report.comparison import write_comparison
from fastnas.report.page import write_report
from fastnas.report.results import RUNS_FILE
from fastnas.report.seeds import write_seeds_report
from fastnas.report.study import write_study_report
from fastnas.report.study_results import is_study

PROGRAM = "fastnas.report"
DESCRIPTION = "Writes report.html into a run directory, from the files that are there."


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """What is reported."""

    run_dir: tyro.conf.Positional[Path]
    """The folder that a search, a training, a comparison or a study wrote."""
    space: str | None = None
    """python:MODULE:OBJECT: a space of your own whose candidates the genotype names."""


def _write(folder: Path) -> Path:
    """Writes the page of a search, a training, a comparison or a study; for several seeds, theirs too."""
    if (folder / RUNS_FILE).is_file():
        return write_comparison(folder)
    if is_study(folder):
        return write_study_report(folder)
    names = {path: path.name.removeprefix("seed-") for path in folder.glob("seed-*")}
    seeds = {int(name): path for path, name in names.items() if name.isdecimal() and len(name) <= 10}
    for path in seeds.values():
        write_report(path)
    return write_seeds_report(folder, dict(sorted(seeds.items()))) if seeds else write_report(folder)


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    options = parse_arguments(ReportOptions, arguments, program_name(PROGRAM), DESCRIPTION)
    import_space(options.space)
    print_text(console, str(_write(options.run_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
