"""How much memory is free, to decide whether a data set can stay in it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on the GPU, or in the host's memory (within a container's limit)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        kilobytes = _fields(MEMINFO)["MemAvailable:"]
    except (OSError, KeyError):  # not Linux: the memory that is built in is the best guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = kilobytes * 1024
    in_container = _free_in_container()
    return available if in_container is None else min(available, in_container)


def _free_in_container() -> int | None:
    """What version 2 control groups leave; cached files count as free, since they give way."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        return max(0, limit - used + _fields(CGROUP / "memory.stat")["inactive_file"])
    except (OSError, KeyError, ValueError):  # no such group, or no limit in it ("max")
        return None


def _fields(file: Path) -> dict[str, int]:
    """First and second word of each line."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines()) if len(words) > 1}
