"""`python -m fastnas.study`: a plan in, many searches and trainings, their table and a page out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from fastnas.cli.arguments import parse_arguments
from fastnas.cli.command import INTERRUPTED, command_line, print_text, program_name, run_command
from fastnas.errors import UserError
from fastnas.option_types import Options, Processes
from fastnas.study.definition import FILE
from fastnas.study.studying import rewrite, run_study, show_study
from fastnas.yaml_text import parse_yaml

PROGRAM = "fastnas.study"
FAILED = 1
DESCRIPTION = """Runs a study: searches and trainings over a grid of options and over seeds.

Finished runs are kept, interrupted ones go on by the same command."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """What is studied."""

    plan: tyro.conf.Positional[str | None] = None
    """The name of a study that comes with fastnas, a YAML file, or the directory of a study, which goes on."""
    out: Path | None = None
    """Directory of the study."""
    scale: str | None = None
    """Of a plan that has scales: small or paper; None for its first."""
    executor: Literal["local", "submitit", "ray"] = "local"
    """local: processes of this machine; submitit: jobs of SLURM; ray: tasks of Ray."""
    parallel: Processes | None = None
    """Runs at a time; None for one per GPU, or as many as the cores have threads for."""
    threads: Processes | None = None
    """CPU threads of each run; None for what the plan says, else 1. They belong to the plan: their number may change
    the last bits of results."""
    cluster: Literal["slurm", "local"] | None = None
    """submitit: where its jobs run; None for SLURM where it is, else this machine."""
    submit: str | None = None
    """submitit: parameters of its jobs, such as slurm_partition=gpu,timeout_min=240,gpus_per_node=1; None for a day on
    the CPU."""
    dry_run: bool = False
    """Print what would run and an estimate of its time and memory from measured steps, write nothing, and exit."""
    report: Path | None = None
    """Directory of a study whose table and page are written anew; nothing else is done."""

    def parameters(self) -> dict[str, Any]:
        """Of submitit's jobs. UserError for words that are none."""
        found: dict[str, Any] = {}
        for word in (self.submit or "").split(","):
            name, is_one, value = word.strip().partition("=")
            if word.strip() and not is_one:
                raise UserError(f"submit is {self.submit!r}, expected NAME=VALUE,…, such as timeout_min=240.")
            if word.strip():
                found[name] = parse_yaml(value)
        return found


@run_command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, 1 if runs failed, 130 after Ctrl-C, or 2 after an error of the user."""
    options = parse_arguments(StudyOptions, arguments, program_name(PROGRAM), DESCRIPTION)
    if options.report is not None:
        rewrite(options.report, console)
        return 0
    if options.plan is None:
        raise UserError("no plan: give the name of a study, a YAML file, or the directory of a study; see --help.")
    directory = Path(options.plan)
    out = options.out or (directory if (directory / FILE).is_file() else None)
    if options.dry_run:
        how = {"scale": options.scale, "threads": options.threads, "slots": options.parallel}
        show_study(options.plan, out, console, **how)  # type: ignore[arg-type]
        return 0
    if out is None:
        raise UserError("no directory: give --out, such as --out runs/my-study.")
    result = run_study(
        options.plan,
        out,
        console,
        scale=options.scale,
        threads=options.threads,
        executor=options.executor,
        parallel=options.parallel,
        cluster=options.cluster,
        submit=options.parameters(),
    )
    if result.status == "interrupted":
        print_text(console, f"stopped; continue with: {command_line(PROGRAM, *arguments)}")
        return INTERRUPTED
    return FAILED if result.status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
