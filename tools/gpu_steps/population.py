"""A population of 50 by shared weights, normalised by running and by batch statistics."""

from __future__ import annotations

from dataclasses import asdict

from gpu_steps.ground import Ground
from gpu_steps.timing import built, keep


def run(ground: Ground) -> None:
    from benchmarks import population
    from benchmarks.harness import FASTNAS, FASTNAS_GRAPHED, GRAPHED, compare
    from benchmarks.harness.networks import Options, describe, work

    ground.prepare_benchmarks()
    device, space = ground.device, population.SPACE
    options = Options(batch=128, individuals=50, timed=2)
    if ground.rehearse:
        options = Options(batch=2, channels=4, layers=3, size=8, individuals=3, timed=1)
    batch, individuals = options.batch or 0, options.individuals or 0
    needed = work(space, options.channels, options.layers, batch, options.size)
    for mode in population.MODES:
        if not ground.has_time():
            ground.add("left_out", mode)
            continue
        arguments = {"space": space, "bn_mode": mode, "sizes": asdict(options)}
        names = (FASTNAS, FASTNAS_GRAPHED, GRAPHED)
        runs = built(ground, population.task, names, **arguments)
        if FASTNAS not in runs:
            continue
        case = f"P={individuals} {describe(space, batch, options)}"
        rows = compare(
            "population", case, mode, runs, baseline=FASTNAS, device=device, seconds=0.0 if ground.rehearse else 2.0,
            flops=needed.population_flops(individuals), least_bytes=needed.population_bytes(individuals, mode),
            scale={GRAPHED: individuals / options.timed} if GRAPHED in runs else {},
            warm_up=0 if ground.rehearse else 2,
        )  # fmt: skip
        keep(ground, "float32", rows)
