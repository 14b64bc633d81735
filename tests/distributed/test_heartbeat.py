"""What a process notices of another one that stands still, or is gone with its machine."""

from __future__ import annotations

import threading

import torch.distributed as dist

from fastnas.heartbeat import Heartbeat


class Ended:
    """Takes what would end the process."""

    def __init__(self) -> None:
        self.message = ""
        self.event = threading.Event()

    def __call__(self, message: str) -> None:
        self.message = message
        self.event.set()


def heart(store: object, rank: int, ended: Ended, beat: float = 0.02) -> Heartbeat:
    return Heartbeat(store, rank, 2, "this one stops.", ended, beat=beat, silence=0.3)


def test_a_process_that_stands_still_ends_the_others() -> None:
    store, ended, other = dist.HashStore(), Ended(), Ended()
    with heart(store, 0, ended):
        with heart(store, 1, other):
            assert not ended.event.wait(0.6)
        assert ended.event.wait(5)
    assert ended.message == "process 1 has given no sign of life for 0 s: this one stops."
    assert not other.event.is_set()


def test_a_store_that_is_gone_ends_all() -> None:
    class Gone:
        def add(self, key: str, amount: int) -> int:
            raise RuntimeError("Connection reset by peer")

    ended = Ended()
    with heart(Gone(), 1, ended):
        assert ended.event.wait(5)
    assert ended.message == "the process that connects the others has ended: this one stops."


def test_who_leaves_minds_nobody() -> None:
    ended = Ended()
    with heart(dist.HashStore(), 0, ended) as own:
        own.leaving = True
        assert not ended.event.wait(0.6)
