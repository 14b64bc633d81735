"""Studies: searches and trainings over a grid of options and over seeds, on one machine or on a cluster.

`python -m fastnas.study PLAN --out DIR` and `fastnas.study.run(PLAN, DIR)` do the same; docs/studies.md describes
plans.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from fastnas.input_file import path_of
from fastnas.report.study_results import StudyResults, read_study
from fastnas.study.definition import AnyPlan, ready_names
from fastnas.study.executors import Executor
from fastnas.study.studying import StudyResult, run_study

__all__ = ["StudyResult", "StudyResults", "read_study", "ready_names", "run"]


def run(
    plan: AnyPlan,
    out: str | os.PathLike[str],
    *,
    scale: str | None = None,
    threads: int | None = None,
    executor: str | Executor = "local",
    parallel: int | None = None,
    cluster: str | None = None,
    submit: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> StudyResult:
    """Runs a study, or what is left of it. Ctrl-C ends every run after its step; the same call goes on.

    Args:
        plan: the name of a study that comes with the package, the path of a YAML file, the directory of a study, or a
            dict that says the same as the file.
        out: directory of the study; runs that are finished there are kept.
        scale: of a plan that has scales, such as "small"; None for its first.
        threads: CPU threads of each run; None for what the plan says, else 1. They belong to the plan, since their
            number may change the last bits of results.
        executor: "local" (processes of this machine), "submitit" (SLURM), "ray", or an `Executor` of your own.
        parallel: runs at a time; None for one per GPU, or as many as the cores have threads for.
        cluster: of submitit: "slurm" or "local"; None for SLURM where it is.
        submit: of submitit: parameters of its jobs, such as {"slurm_partition": "gpu", "timeout_min": 240}.
        progress: print what the command prints.

    Raises:
        UserError: the plan is not in order, or the directory holds something else. A run that fails raises nothing, and
            does not stop the others.
    """
    console = Console(force_jupyter=False, quiet=not progress)
    how: dict[str, Any] = {"scale": scale, "threads": threads, "executor": executor, "parallel": parallel}
    return run_study(plan, path_of(out), console, **how, cluster=cluster, submit=submit)
