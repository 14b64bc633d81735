"""One word for one thing: names that were retired do not come back.

What a retired name has become stands beside it. Only identifiers count, not prose.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = {
    "ANCESTORS": "BASELINES",
    "Ancestor": "Baseline",
    "accumulate_dtype": "acc_dtype",
    "CellForm": "CellPattern",
    "form_of": "match_op",
    "pool_form": "match_pool",
    "Chain": "Branch",
    "chain_of": "branch_of",
    "StageChain": "SeparableBranch",
    "PointwiseChain": "PointwiseBranch",
    "PoolChain": "PoolBranch",
    "IdentityChain": "IdentityBranch",
    "NothingChain": "ZeroBranch",
    "Nothing": "ZeroPattern",
    "Skip": "IdentityPattern",
    "Moments": "BatchStats",
    "normalisation_numbers": "bn_backward_coeffs",
    "CellPlan": "CellLayout",
    "Plan": "EpochPlan, ForwardPlan",
    "Recipe": "PatchSpec",
    "RecipeOptions": "TrainingRecipe",
    "Unfit": "Unsupported",
    "disagreement": "mismatch",
    "introduce": "print_search_header",
    "conclude": "print_search_summary",
    "mixture": "arch_weights",
    "mean_mixture": "mean_arch_weights",
    "CandidatePlan": "LoneCandidate",
}
# Attributes that stay as deprecated names: the class that keeps them.
DEPRECATED = {"left_alone": "fastnas/compat/reporting.py"}

CXX = {
    "Ahead": "Prefetcher",
    "Moments": "BatchStats",
    "RunMoments": "RunBatchStats",
    "MomentSums": "BatchStats",
    "Layout": "ScratchArena",
    "Plan": "LaunchPlan, StagePacking",
    "StagePlan": "StagePacking",
    "EdgePlan": "EdgePacking",
    "weave": "interleave",
    "unweave": "deinterleave",
    "weave_gradients": "interleave_gradients",
    "add_rest": "add_bypass",
    "read_ahead": "prefetch",
    "for_streams": "with_slot_count",
    "streams": "for_slots",
    "write_streams": "store_slots",
    "add_groups": "add_shuffled_bypass",
    "read_row": "load_row_into",
    "order_of": "memory_format_of",
    "Turned": "Flipped",
    "dots_kernel": "sums_kernel",
    "bypass_dots_kernel": "bypass_weights_kernel",
    "Line": "BnBackwardSums",
    "Order": "MemoryFormat",
    "is_stored": "has_memory_format",
}


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Every identifier of Python code that names or is used as something, with its line."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield line, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield line, name
            case ast.alias(name=name, asname=other):
                yield from ((line, part) for part in (*name.split("."), other) if part)


def defined_in(source: str) -> Iterator[tuple[int, str]]:
    """Names of classes and of functions that C++ code defines or declares, with their lines."""
    code = re.sub(r"//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"", "", source)
    for found in re.finditer(r"\b(?:class|struct|enum class)\s+(\w+)|^[\w:<>,&*\s]*?[\w>&*]\s+(\w+)\(", code, re.M):
        yield code.count("\n", 0, found.start()) + 1, found[1] or found[2]


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def test_retired_names_of_python_do_not_come_back() -> None:
    sources = [path for path in files("fastnas/**/*.py", "benchmarks/**/*.py") if "baselines" not in path.parts]
    assert len(sources) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} is called {PYTHON[name]} now"
        for path in sources
        for line, name in names_in(path.read_text(encoding="utf-8"))
        if name in PYTHON
    ]
    found += [
        f"{path.relative_to(ROOT)}:{line}: {name} is kept in {DEPRECATED[name]} only"
        for path in sources
        for line, name in names_in(path.read_text(encoding="utf-8"))
        if name in DEPRECATED and str(path.relative_to(ROOT)) != DEPRECATED[name]
    ]
    assert found == []


def test_retired_names_of_cxx_do_not_come_back() -> None:
    sources = files("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu")
    assert len(sources) > 50
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} is called {CXX[name]} now"
        for path in sources
        for line, name in defined_in(path.read_text(encoding="utf-8"))
        if name in CXX
    ]
    assert found == []


@pytest.mark.parametrize(
    ("limit", "patterns"),
    [
        (400, ("fastnas/**/*.py", "benchmarks/**/*.py")),
        (450, ("csrc/cpu/*", "csrc/ops/*")),
    ],
)
def test_no_file_has_outgrown_its_room(limit: int, patterns: tuple[str, ...]) -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files(*patterns)}
    assert {path: length for path, length in lengths.items() if length > limit} == {}


def test_networks_are_few_files() -> None:
    assert len(files("fastnas/nn/*.py")) <= 11


def test_the_search_for_names_finds_them() -> None:
    code = "import a.Chain as b\nclass Skip: pass\ndef f(mixture): return x.Unfit(recipe=Plan)\n"
    assert {name for _, name in names_in(code)} >= {"Chain", "Skip", "mixture", "Unfit", "Plan", "recipe"}
    code = (
        "// struct Plan\nstruct Ahead {\n  int read_ahead(int top) const;\n};\ntemplate <int W>\nvoid weave(T* x) {}\n"
        'auto text = "class Moments";\n'
    )
    assert {name for _, name in defined_in(code)} == {"Ahead", "read_ahead", "weave"}
