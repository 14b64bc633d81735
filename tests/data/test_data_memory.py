from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sample_sources import array_source, write_folder

from fastnas import data
from fastnas.data import memory, tensor
from fastnas.data.dali import is_installed
from fastnas.errors import UserError

CPU = torch.device("cpu")


def test_this_machine_has_some_memory() -> None:
    assert 2**20 < memory.free_memory(CPU) < 2**50


def test_host_memory_and_container_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:     500 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert memory.free_memory(CPU) == 500 * 1024
    (tmp_path / "memory.max").write_text("400000\n")
    assert memory.free_memory(CPU) == 150000
    (tmp_path / "memory.max").write_text("100000\n")
    assert memory.free_memory(CPU) == 0


def test_without_meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "gone")
    assert memory.free_memory(CPU) > 2**20


def test_auto_takes_tensor_up_to_a_quarter_of_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 2, 'b': 2})}")
    monkeypatch.setattr(tensor, "free_memory", lambda device: 4 * source.nbytes - 1)
    assert data.pipeline(source, batch_size=2).kind == ("dali" if is_installed() else "torchvision")
    monkeypatch.setattr(data, "is_installed", lambda: False)
    assert data.pipeline(source, batch_size=2).kind == "torchvision"
    monkeypatch.setattr(tensor, "free_memory", lambda device: 4 * source.nbytes)
    assert data.pipeline(source, batch_size=2).kind == "tensor"
    # Now that they are loaded, they do not count against themselves.
    monkeypatch.setattr(tensor, "free_memory", lambda device: 3 * source.nbytes)
    assert data.pipeline(source, batch_size=2).kind == "tensor"


def test_tensor_refuses_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.open(f"folder:{write_folder(tmp_path, {'a': 2, 'b': 2})}")
    monkeypatch.setattr(tensor, "free_memory", lambda device: source.nbytes - 1)
    with pytest.raises(UserError, match=f"folder:{tmp_path} takes .* GiB are free; use the dali or"):
        data.pipeline(source, "tensor", batch_size=2)
    data.pipeline(array_source(), "tensor", batch_size=2)  # in memory anyway


def test_pipelines_of_one_source_share_the_images() -> None:
    source = array_source()
    first, second = (data.pipeline(source, "tensor", batch_size=2, indices=part) for part in ([0, 1], [2, 3]))
    assert first._images is second._images
    assert first._images.data_ptr() == source.images().ctypes.data
