"""``python -m fastnas.report RUN_DIR``: writes the report of a run directory again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastnas.errors import UserError
from fastnas.report.comparison import RUNS_FILE, write_comparison
from fastnas.report.page import write_report


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m fastnas.report",
        description="Writes report.html into a run directory, from the files that are there.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder that a search or a comparison wrote")
    try:
        run_dir = parser.parse_args(arguments).run_dir
        write = write_comparison if (run_dir / RUNS_FILE).is_file() else write_report
        print(write(run_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
