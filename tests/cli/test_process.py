"""What a command does before its work begins."""

from __future__ import annotations

import pytest
import torch

from fastnas.cli.process import resolve_device


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [1]), ("cuda", []), ("cpu", [])])
def test_the_gpu_of_a_command_is_the_current_one(name: str, current: list[int], monkeypatch):
    chosen: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert resolve_device(name) == torch.device(name)
    assert chosen == current
