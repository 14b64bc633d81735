"""What a check has found, in about 25 lines, and what to look at first. Reads plain values, so it runs anywhere."""

from __future__ import annotations

from typing import Any


def lines_of(record: dict[str, Any]) -> list[str]:
    steps: dict[str, dict[str, Any]] = record["steps"]
    title = "fastnas, rehearsed without a GPU" if record["rehearsed"] else "fastnas on a GPU"
    lines = [f"{title}: {record.get('seconds', 0):.0f} s, seed {record['seed']}"]
    for name, step in steps.items():
        says = WORDS.get(name, lambda step: [""])(step) or [""]
        lines += [f"{name if index == 0 else '':<12} {step['status'] if index == 0 else '':<22} {words}".rstrip()
                  for index, words in enumerate(says)]  # fmt: skip
    return [*(line[:150] for line in lines), f"look first: {first_look(steps)}"]


def first_look(steps: dict[str, dict[str, Any]]) -> str:
    """What spoils most of the rest comes first."""
    for name, step in steps.items():
        if step.get("failures"):
            return f"{name}: {step['failures'][0]}"[:200]
        if step["status"] != "ok" and not step["status"].startswith("left out"):
            return f"{name} {step['status']}"[:200]
    operators = [row for row in steps.get("kernels", {}).get("operators", []) if row["calls"]]
    if operators:
        worst = max(operators, key=lambda row: row["lost_ms"])
        return (
            f"{worst['operator']} loses {worst['lost_ms']:.2f} ms of {worst['ms']:.2f} in a weight step, the most of "
            "all operators"
        )
    return "nothing failed"


def _machine(step: dict[str, Any]) -> list[str]:
    missing = f"; missing: {', '.join(step['missing'])}" if step.get("missing") else ""
    tools = step.get("tools", {})
    absent = [tool for tool, version in tools.items() if version is None]
    lines = [
        f"{step.get('gpu', 'no GPU')}, torch {step.get('torch')}, Python {step.get('python')}, "
        f"{step.get('cores')} cores"
    ]
    if "copy_gbs" in step:
        lines.append(
            f"copy {step['copy_gbs']:,.0f} GB/s, float32 {step['float32_tflops']:,.1f} TFLOP/s, "
            f"bfloat16 {step.get('bfloat16_tflops', 0):,.1f} TFLOP/s"
        )
    return [*lines, f"without: {', '.join(absent) or 'no tool'}{missing}"]


def _build(step: dict[str, Any]) -> list[str]:
    return [f"{step.get('build_seconds')} s"]


def _operators(step: dict[str, Any]) -> list[str]:
    unseen = f", never {', '.join(step['unseen'])}" if step.get("unseen") else ""
    return [f"{step.get('cases', 0)} calls of {len(step.get('of_each', {}))} operators{unseen}"]


def _networks(step: dict[str, Any]) -> list[str]:
    return [
        f"{one['space']} {one['precision']}: gradients {one['gradients']:.1e}, population {one['population']:.1e} off"
        for one in step.get("compared", [])
    ]


def _sanitizer(step: dict[str, Any]) -> list[str]:
    return [f"{step.get('cases', 0)} calls, errors {step.get('errors')}"]


def _tests(step: dict[str, Any]) -> list[str]:
    return [step.get("summary", "")]


def _capture(step: dict[str, Any]) -> list[str]:
    return [f"{step.get('recordings', 0)} recordings beside {step.get('pinned', 0)} pinned blocks"]


def _times(step: dict[str, Any]) -> list[str]:
    """A line for each case: contenders with their milliseconds."""
    cases: dict[tuple[str, str, str], list[str]] = {}
    floors: dict[tuple[str, str, str], float] = {}
    for row in step.get("rows", []):
        case = row["case"].split(" C=")[0], row["mode"], row["precision"]
        cases.setdefault(case, []).append(f"{SHORT.get(row['contender'], row['contender'])} {row['ms']:.2f}")
        floors[case] = row["floor_ms"]
    return [f"{case[0]} {case[1].replace('both', '')} {case[2]}: {', '.join(times)} ms, floor {floors[case]:.2f}"
            for case, times in cases.items()]  # fmt: skip


def _kernels(step: dict[str, Any]) -> list[str]:
    rows = sorted((row for row in step.get("operators", []) if row["calls"]), key=lambda row: -row["lost_ms"])[:3]
    worst = ", ".join(f"{row['operator']} {row['ms']:.2f} (floor {row['floor_ms']:.2f})" for row in rows)
    return [f"{step.get('launched', '?')} launches, counted {step.get('launches', '?')}; lost most: {worst} ms"]


def _search(step: dict[str, Any]) -> list[str]:
    epochs = [", ".join(f"{phase} {seconds:.2f}" for phase, seconds in one.items()) for one in step.get("phases", [])]
    return [
        f"{step.get('strategy')}, {step.get('steps')} steps, recorded {step.get('recorded')}: {'; '.join(epochs)} s"
    ]


# As benchmarks.harness has them, which needs torch.
SHORT = {
    "CUDA-graphed fastnas": "graphed",
    "plain torch": "plain",
    "channels-last torch": "channels-last",
    "CUDA-graphed torch": "torch graphed",
}
WORDS = {
    "machine": _machine,
    "build": _build,
    "operators": _operators,
    "networks": _networks,
    "memcheck": _sanitizer,
    "racecheck": _sanitizer,
    "tests": _tests,
    "capture": _capture,
    "weight step": _times,
    "kernels": _kernels,
    "population": _times,
    "search": _search,
    "retraining": _times,
}
