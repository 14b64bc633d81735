"""``python -m fastnas.report RUN_DIR``: writes the report of a run directory again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastnas.errors import UserError
from fastnas.report.page import write_report
from fastnas.report.seeds import write_seeds_report


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m fastnas.report",
        description="Writes report.html into a run directory, from the files that are there.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder that a search or a training wrote")
    try:
        run_dir = parser.parse_args(arguments).run_dir
        seeds = {
            int(name): path for path in run_dir.glob("seed-*") if (name := path.name.removeprefix("seed-")).isdigit()
        }
        for folder in seeds.values():
            write_report(folder)
        print(write_seeds_report(run_dir, dict(sorted(seeds.items()))) if seeds else write_report(run_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
