"""The report's colours: chosen for light and dark backgrounds, distinguishable with any colour vision.

Every colour is a CSS custom property, so that one drawing serves both colour schemes.
"""

from __future__ import annotations

import zlib

# name: (on light, on dark)
SURFACES = {
    "paper": ("#ffffff", "#14171c"),
    "raised": ("#f6f7f9", "#1c2027"),
    "ink": ("#191c21", "#e8eaee"),
    "ink-soft": ("#5b636f", "#a0a8b5"),
    "line": ("#dfe2e7", "#323843"),
    "accent": ("#1b62b8", "#6cabf5"),
    "contrast": ("#b45309", "#f0a35e"),
    "muted": ("#8a929e", "#78818f"),
}

# Any two of the eight DARTS candidates differ by 19 or more in CIELAB, also in simulated protanopia, deuteranopia and
# tritanopia (Machado et al. 2009); against the page each has a contrast of 3 or more.
OPERATIONS = {
    "avg_pool_3x3": ("#c08000", "#fed550"),
    "max_pool_3x3": ("#de634b", "#f0702a"),
    "skip_connect": ("#00522a", "#34b067"),
    "sep_conv_3x3": ("#0097be", "#7cd6fd"),
    "sep_conv_5x5": ("#0d59d6", "#4a88ff"),
    "sep_conv_7x7": ("#686e91", "#41aafa"),
    "dil_conv_3x3": ("#7e3062", "#d3709a"),
    "dil_conv_5x5": ("#5f1885", "#9b7acc"),
    "conv_7x1_1x7": ("#6c6219", "#b0a844"),
    "none": ("#8d9094", "#d3d6db"),
}
SAME_COLOUR = {"nor_conv_1x1": "sep_conv_3x3", "nor_conv_3x3": "sep_conv_5x5"}

PHASES = {
    "strategy": ("#0d59d6", "#4a88ff"),
    "train": ("#3f93b8", "#78b8d4"),
    "valid": ("#00522a", "#34b067"),
    "data": ("#de634b", "#f0702a"),
    "other": ("#8d9094", "#d3d6db"),
}


def operation_colour(name: str) -> str:
    """The colour name of a candidate, always the same one; an unknown candidate gets one by its name's checksum."""
    name = SAME_COLOUR.get(name, name)
    if name not in OPERATIONS:
        coloured = [known for known in OPERATIONS if known != "none"]
        name = coloured[zlib.crc32(name.encode()) % len(coloured)]
    return f"op-{name}"


def phase_colour(name: str) -> str:
    return f"phase-{name if name in PHASES else 'other'}"


COLOURS = (
    SURFACES
    | {operation_colour(name): pair for name, pair in OPERATIONS.items()}
    | {phase_colour(name): pair for name, pair in PHASES.items()}
)


def stylesheet(selector: str, names: list[str] | None = None) -> str:
    """CSS that defines the named colours (default all) on ``selector`` for both colour schemes."""

    def block(scheme: int) -> str:
        return selector + "{" + "".join(f"--{n}:{COLOURS[n][scheme]};" for n in names or COLOURS) + "}"

    return f"{block(0)}@media(prefers-color-scheme:dark){{{block(1)}}}"
