"""Durations in words: 2h, 1h30m, about 12 min."""

from __future__ import annotations

import re

from fastnas.errors import UserError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90s, 45m, 1.5h, 1h30m or 2d. UserError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < 1e9:
        raise UserError(f"budget is {text!r}, expected a time with its unit, such as 90s, 45m, 1.5h, 1h30m or 2d.")
    return seconds


def in_words(seconds: float) -> str:
    """For an estimate: 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"
