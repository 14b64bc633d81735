"""A search that is killed with SIGKILL loses nothing but time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_killed_at_random_moments():
    script = Path(__file__).with_name("kill_resume.py")
    result = subprocess.run(
        [sys.executable, str(script), "--kills", "6"], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 kills: every checkpoint readable" in result.stdout
