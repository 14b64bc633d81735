"""The page about deployment, with a network whose answers are known."""

from __future__ import annotations

from doc_pages import ROOT

PAGE = ROOT / "docs/deploy.md"
