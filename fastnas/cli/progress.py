"""What is shown during a run: one line per epoch, and on a terminal a bar for the phase in progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from rich.console import Console

from fastnas.cli.command import print_text
from fastnas.cli.phase_bar import phase_bar
from fastnas.cli.time_left import TimeLeft, short_time
from fastnas.engine.forecast import Forecast
from fastnas.engine.loop import Loop

VALIDATED = {"supernet": "supernet", "cell": "found cell by shared weights"}
OnEpoch: TypeAlias = Callable[[dict[str, Any]], object]
OnStep: TypeAlias = Callable[[dict[str, Any]], object]

LISTED = 10  # files that were left out
HEADER = (
    f"{'epoch':>7} {'rate':>6} {'loss':>8} {'acc':>6} {'val_loss':>8} {'val_acc':>7} "
    f"{'H(α)':>5} {'skips':>5} {'time':>7} {'left':>6} {'wait':>4}"
)
"""At most 79 columns, as `epoch_line`. `left` is what the whole run still takes, `wait` the share of the weight steps'
time that was spent waiting for images."""


def epoch_line(record: dict[str, Any], epochs: int, left: float | None = None) -> str:
    """One row of the table under `HEADER`, from an "epoch" event. left: seconds until the end, where it is known."""
    alpha_entropy = sum(record["alpha_entropy"].values()) / len(record["alpha_entropy"])
    counts = record["skip_count"]
    both = [sum(n for kind, n in counts.items() if kind.endswith("reduce") is reduce) for reduce in (False, True)]
    skips = f"{both[0]}+{both[1]}"
    columns = [
        f"{record['epoch'] + 1:>3}/{epochs:<3}",
        f"{record['learning_rate']:>6.4f}",
        f"{_number(record['train_loss'], '.4f'):>8}",
        f"{_number(record['train_accuracy'], '.1%'):>6}",
        f"{_number(record['valid_loss'], '.4f'):>8}",
        f"{_number(record['valid_accuracy'], '.1%'):>7}",
        f"{alpha_entropy:>5.3f}",
        f"{skips:>5}",
        f"{sum(record['seconds'].values()):>6.1f}s",
        f"{short_time(left):>6}",
        f"{waiting_share(record['seconds']):>4.0%}",
    ]
    return " ".join(columns)


TRAIN_HEADER = (
    f"{'epoch':>9} {'rate':>8} {'drop':>6} {'loss':>8} {'acc':>6} {'val_loss':>8} {'val_acc':>7} "
    f"{'time':>8} {'left':>6}"
)


def train_line(record: dict[str, Any], epochs: int, left: float | None = None) -> str:
    """One row of the table under `TRAIN_HEADER`, from an "epoch" event of a retraining. left: as of `epoch_line`."""
    columns = [
        f"{record['epoch'] + 1:>4}/{epochs:<4}",
        f"{record['learning_rate']:>8.5f}",
        f"{record['drop_path']:>6.3f}",
        f"{_number(record['train_loss'], '.4f'):>8}",
        f"{_number(record['train_accuracy'], '.1%'):>6}",
        f"{_number(record['valid_loss'], '.4f'):>8}",
        f"{_number(record['valid_accuracy'], '.1%'):>7}",
        f"{sum(record['seconds'].values()):>7.1f}s",
        f"{short_time(left):>6}",
    ]
    test, waiting = record["test_accuracy"], waiting_share(record["seconds"])
    return (
        " ".join(columns)
        + ("" if test is None else f"  test {test:.2%}")
        + (f"  waited {waiting:.0%} of the time for images" if waiting >= 0.05 else "")
    )


def waiting_share(seconds: dict[str, float]) -> float:
    """Share of the weight steps' time that was spent waiting for images."""
    busy = seconds.get("train", 0.0) + seconds.get("data", 0.0)
    return seconds.get("data", 0.0) / busy if busy else 0.0


def update_line(record: dict[str, Any]) -> str:
    """One line for an "update" event: what an evolution step, or all evaluations so far, found."""
    if "evaluated" in record:
        done, asked = record["evaluated"], record["asked"]
        more = f" ({asked} asked for, rounded up to whole generations)" if done > asked else ""
        return f"        {done} architectures evaluated{more}, the best one has {record['best_accuracy']:.1%}"
    return (
        f"        evolution step {record['step'] + 1}: σ {record['sigma']:.3f}, α has "
        f"{record['current_accuracy']:.1%}, taken {record['best_accuracy']:.1%}, fitness {record['best_fitness']:.4f}"
    )


def update_legend(record: dict[str, Any]) -> Iterator[str]:
    """What the numbers of `update_line` are, each time that something new is to be said, by its first words."""
    if "evaluated" in record:
        yield f"        accuracy by {record['by']}"
        return
    yield "        (taken: the individual towards which α moves; both accuracies on the same few images)"
    if record["best_accuracy"] < record["current_accuracy"] and record["form"] == "eq3":
        yield (
            "        (it can be less accurate than α: the fitness, equation 3, rewards similarity to α only below α's "
            "accuracy)"
        )


@contextmanager
def shown(
    loop: Loop,
    console: Console,
    header: str = HEADER,
    line: Callable[[dict[str, Any], int, float | None], str] = epoch_line,
    forecast: Forecast | None = None,
) -> Iterator[None]:
    """Shows the progress of `loop` on `console` while the context is open: `line` of every epoch under `header`.

    forecast: what was measured of the run before it began."""
    explained: set[str] = set()
    left = TimeLeft(loop.epochs, loop.epoch, forecast=forecast)

    def explain(words: str) -> None:
        if words not in explained:
            explained.add(words)
            print_text(console, words, style="dim")

    def write(record: dict[str, Any]) -> None:
        if record["event"] == "epoch":
            left.epoch(record)
            print_text(console, line(record, loop.epochs, left.seconds))
            if "valid_of" in record:
                explain(f"        (valid: {VALIDATED[record['valid_of']]}, validation half{_how(record)})")
        elif record["event"] == "update":
            print_text(console, update_line(record), style="dim")
            for words in update_legend(record):
                explain(words)

    loop.log.listeners.append(write)
    print_text(console, header, style="bold")
    with phase_bar(console, lambda: "" if left.seconds is None else f"{short_time(left.seconds)} left") as draw:

        def show(phase: str, done: int, total: int) -> None:
            left.step(phase, done, total)
            draw(phase, done, total)

        loop.show = show
        yield


def call_back(loop: Loop, on_epoch: OnEpoch | None, on_step: OnStep | None) -> None:
    """Tells functions of the user what happens in `loop`; after `shown`, whose bar goes on."""
    if on_epoch is not None:

        def tell(record: dict[str, Any]) -> None:
            if record["event"] == "epoch":
                on_epoch({"seed": loop.seed, **record})

        loop.log.listeners.append(tell)
    if on_step is not None:
        draw = loop.show

        def show(phase: str, done: int, total: int) -> None:
            draw(phase, done, total)
            on_step({"seed": loop.seed, "epoch": loop.epoch, "phase": phase, "step": done - 1, "steps": total})

        loop.show = show


def _how(record: dict[str, Any]) -> str:
    """What is to be known of a validation that does not take running statistics."""
    by_batch = record.get("valid_statistics") == "batch"
    return "; BatchNorm by its images, as an epoch is too short for running statistics" if by_batch else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_left_out(problems: Sequence[str], console: Console) -> None:
    """Lists files that were left out because they could not be read, each with the reason."""
    if not problems:
        return
    print_text(console, f"{len(problems):,} unreadable {'file' if len(problems) == 1 else 'files'} left out:")
    for problem in problems[:LISTED]:
        print_text(console, f"  {problem}")
    if len(problems) > LISTED:
        print_text(console, f"  and {len(problems) - LISTED:,} more, all in metrics.jsonl and the report")
