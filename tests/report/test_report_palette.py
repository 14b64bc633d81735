"""Colours: fixed for every candidate, readable, and distinguishable with any colour vision."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fastnas.report.palette import COLOURS, OPERATIONS, SURFACES, operation_colour, phase_colour, stylesheet

DARTS = [name for name in OPERATIONS if name not in ("sep_conv_7x7", "conv_7x1_1x7")]

# Machado, Oliveira, Fernandes: A physiologically-based model for simulation of color vision deficiency, 2009.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(code: str) -> np.ndarray:
    c = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(rgb, 0, 1) / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(first: str, second: str) -> float:
    """Contrast ratio of the Web Content Accessibility Guidelines."""
    low, high = sorted(float(linear(code) @ (0.2126, 0.7152, 0.0722)) for code in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", [0, 1])
def test_candidates_differ_for_every_colour_vision(vision: str, scheme: int) -> None:
    seen = {name: lab(np.array(VISION[vision]) @ linear(OPERATIONS[name][scheme])) for name in DARTS}
    for one, other in combinations(DARTS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 19, (one, other)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_to_the_page(scheme: int) -> None:
    paper = SURFACES["paper"][scheme]
    for name, pair in COLOURS.items():
        if name not in ("paper", "raised", "line"):
            assert contrast(pair[scheme], paper) >= 3, name
    for name in ("ink", "ink-soft", "accent", "contrast"):  # these are also text
        assert contrast(SURFACES[name][scheme], paper) >= 4.5, name


def test_every_candidate_has_a_colour_and_keeps_it() -> None:
    for name in (*OPERATIONS, "nor_conv_1x1", "nor_conv_3x3", "something_new", "<b>", ""):
        assert operation_colour(name) in COLOURS
    assert operation_colour("nor_conv_1x1") != operation_colour("nor_conv_3x3")
    assert operation_colour("something_new") == "op-dil_conv_5x5"  # in every process
    assert phase_colour("train") != phase_colour("strategy")
    assert phase_colour("something_new") in COLOURS


def test_stylesheet_defines_both_schemes() -> None:
    text = stylesheet(".x", ["ink", "paper"])
    light, dark = text.split("@media(prefers-color-scheme:dark)")
    assert light == f".x{{--ink:{SURFACES['ink'][0]};--paper:{SURFACES['paper'][0]};}}"
    assert dark == f"{{.x{{--ink:{SURFACES['ink'][1]};--paper:{SURFACES['paper'][1]};}}}}"
    assert all(f"--{name}:" in stylesheet(":root") for name in COLOURS)
