"""`accelerate`: finds known modules in a foreign network, innermost first, and gives them a fused forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from fastnas import onednn
from fastnas.compat import cell, graph, mixed_operation
from fastnas.compat.candidate import recognise
from fastnas.compat.lone_candidate import LoneCandidate
from fastnas.compat.mixed_operation import candidates_of
from fastnas.compat.replacement import (
    PatchSpec,
    Unsupported,
    accelerate_in_place,
    holder_of,
    is_accelerated,
    plan_of,
    restore_in_place,
)
from fastnas.compat.reporting import Entry, Report
from fastnas.compat.signature import original_class
from fastnas.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


def accelerate(module: Module, *, strict: bool = False) -> Module:
    """Runs the mixed operations and cells of a foreign network on the fused operators, in place.

    Whole cells of the usual form, mixed operations, and lists of candidates are recognised by their structure.
    Everything else runs unchanged, and so does any single call that the operators cannot compute (another dtype, a
    candidate with hooks, BatchNorms in different modes). Before a module is replaced, its own forward and the fused one
    are compared on a copy. Parameters, buffers, names, hooks and `state_dict` stay as they are: only the class of a
    module changes, to a subclass of its own. Copies and pickles of it are accelerated, too. Outputs are channels-last.
    The network can be differentiated once; for a second derivative `restore` it.

    Args:
        module: the network, or a part of it.
        strict: raise if something that looks like a cell or a mixed operation is skipped in full or in part, or if
            there is nothing of the kind.

    Returns:
        The module itself. What was fused and what was not, and why, is in `report(module)`.

    Raises:
        UserError: see `strict`; the module is left as it was.
    """
    onednn.guard(module)  # modules that run unchanged get channels-last states, too
    fresh = [each for each in module.modules() if not is_accelerated(each)]
    for each in reversed(fresh):  # what is inside comes first
        _accelerate_whole(each)
    for each in _loose_candidates(module):
        accelerate_in_place(each, PatchSpec(LoneCandidate, "forward"))
    if strict:
        found = report(module)
        if found.skipped or not found.entries:
            for each in fresh:
                restore_in_place(each)
            onednn.unguard(module)
            raise UserError(f"accelerate(strict=True): not everything could be fused.\n{found}")
    return module


def restore(module: Module) -> Module:
    """Undoes `accelerate`, in place. Returns the module itself."""
    for each in module.modules():
        restore_in_place(each)
    onednn.unguard(module)
    return module


def report(module: nn.Module) -> Report:
    """What is fused in a network at present, what runs unchanged, and why."""
    return Report(tuple(_entries(module)))


def _accelerate_whole(module: nn.Module) -> None:
    for spec in _specs(module):
        try:
            plan = plan_of(module, spec)
        except Unsupported:
            continue
        accelerate_in_place(module, spec, plan)
        return


def _specs(module: nn.Module) -> Iterator[PatchSpec]:
    yield from cell.specs(module)
    yield from mixed_operation.specs(module)
    yield from graph.specs(module)


def _loose_candidates(module: nn.Module) -> list[nn.Module]:
    """Candidates with convolutions, side by side in a container, whose sum has an unknown form."""
    plans = [holder_of(each).plan for each in module.modules() if is_accelerated(each)]
    covered = {candidate.module for plan in plans if plan is not None for candidate in plan.candidates}
    found = []
    for each in module.modules():
        lists = isinstance(each, nn.ModuleList | nn.ModuleDict) or any(True for _ in mixed_operation.specs(each))
        known = [recognise(candidate) for candidate in candidates_of(each) if candidate not in covered] if lists else []
        if sum(candidate.pattern is not None for candidate in known) > 1:
            found += [one.module for one in known if one.pattern is not None and one.pattern.convolutions]
    return [each for each in dict.fromkeys(found) if not is_accelerated(each)]


def _entries(module: nn.Module) -> Iterator[Entry]:
    for path, each in module.named_modules():
        kind = original_class(each).__name__
        if is_accelerated(each):
            plan, reason = holder_of(each).plan, holder_of(each).reason
            if plan is None:
                yield Entry(path, kind, "", "", (reason,))
            else:
                yield Entry(path, kind, plan.level, plan.summary(), tuple(plan.skipped()))
            continue
        reasons = []
        for spec in _specs(each):
            try:
                plan_of(each, spec)
            except Unsupported as unsupported:
                reasons.append(str(unsupported))
        if reasons:
            telling = [reason for reason in reasons if not reason.startswith("the equivalence check failed")]
            yield Entry(path, kind, "", "", ((telling or reasons)[0],))
