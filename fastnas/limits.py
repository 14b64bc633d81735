"""How large a network may be: whatever a file or an option says, building it comes to an end."""

from __future__ import annotations

from collections.abc import Mapping

from fastnas.errors import UserError

MOST = 1_000_000  # of channels, cells, classes
MOST_OPERATIONS = 20_000  # in all cells together; the networks of the literature have up to 2,500


def check_sizes(sizes: Mapping[str, int]) -> None:
    """UserError for a number, by its name, that is below 1 or above what any network has."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} is {value}, expected at least 1.")
        if value > MOST:
            raise UserError(f"{name} is {value}, expected at most {MOST:,}.")


def check_operations(layers: int, count: int) -> None:
    """UserError where `layers` cells have more operations together, `count`, than can be built in minutes."""
    if count > MOST_OPERATIONS:
        raise UserError(
            f"{layers:,} layers have {count:,} operations, expected at most {MOST_OPERATIONS:,}: give fewer layers or "
            "smaller cells."
        )
