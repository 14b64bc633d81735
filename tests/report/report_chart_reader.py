"""Runs for charts, and what can be read in the charts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from report_synthetic_run import run_events

from fastnas.report.chart import Chart
from fastnas.report.run import Run

SVG = "{http://www.w3.org/2000/svg}"


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in ET.fromstring(chart.svg()).iter(f"{SVG}text")]


def hovers(chart: Chart) -> list[str]:
    root = ET.fromstring(chart.svg())
    return [rect.findtext(f"{SVG}title") or "" for rect in root.iter(f"{SVG}rect") if rect.get("class") == "hover"]


def by_name(charts: Iterable[Chart]) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts}


def run_of(*epochs: dict[str, Any], **fields: Any) -> Run:
    return Run(Path("run"), epochs=[{"event": "epoch", "epoch": i} | epoch for i, epoch in enumerate(epochs)], **fields)


def complete_run(**options: int) -> Run:
    events, genotype = run_events(Path("run"), **options)
    kinds = {
        kind: [event for event in events if event["event"] == kind] for kind in ("run", "epoch", "population", "update")
    }
    return Run(Path("run"), {}, *kinds.values(), events[-1], genotype, "genotype.json")
