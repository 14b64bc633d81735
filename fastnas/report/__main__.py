"""``python -m fastnas.report RUN_DIR``: writes the report of a run directory again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from fastnas.cli.command import command, print_text
from fastnas.cli.own_code import add_space_flag, import_space
from fastnas.report.comparison import write_comparison
from fastnas.report.page import write_report
from fastnas.report.results import RUNS_FILE
from fastnas.report.seeds import write_seeds_report


def _write(folder: Path) -> Path:
    """Writes the page of a search, a training or a comparison; for several seeds, theirs too."""
    if (folder / RUNS_FILE).is_file():
        return write_comparison(folder)
    seeds = {int(name): path for path in folder.glob("seed-*") if (name := path.name.removeprefix("seed-")).isdigit()}
    for path in seeds.values():
        write_report(path)
    return write_seeds_report(folder, dict(sorted(seeds.items()))) if seeds else write_report(folder)


@command
def main(arguments: list[str], console: Console) -> int:
    """The command. Returns the exit status: 0, or 2 after an error of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m fastnas.report",
        description="Writes report.html into a run directory, from the files that are there.",
    )
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the folder that a search, a training or a comparison wrote"
    )
    add_space_flag(parser)
    options = parser.parse_args(arguments)
    import_space(options.space)
    print_text(console, str(_write(options.run_dir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
