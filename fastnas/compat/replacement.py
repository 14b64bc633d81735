"""Gives a module a fused forward in place: its class becomes a subclass of its own class.

So `isinstance`, names, parameters, buffers, hooks and optimizers keep working. What a fused forward knows about its
module is a `ForwardPlan`, which is made anew where it no longer fits the module: in copies, in replicas of
`DataParallel`, after other code has changed the module.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad

from fastnas.compat.candidate import Candidate
from fastnas.compat.equivalence import mismatch
from fastnas.compat.signature import HOLDER, Watch, original_class, signature


class Unsupported(Exception):  # noqa: N818 (not an error of the user)
    """A module does not have the form that a plan needs; the message says why."""


class ForwardPlan(ABC):
    """How one module is computed.

    Raises:
        Unsupported: by the constructor, for a module of another form.
    """

    level: ClassVar[str]
    candidates: list[Candidate]  # that it computes

    @abstractmethod
    def __init__(self, module: nn.Module, spec: PatchSpec) -> None: ...

    @abstractmethod
    def run(self, module: nn.Module, *arguments: Any) -> Any:
        """The output; None where the module's own forward must compute it."""

    @abstractmethod
    def arguments(self) -> list[list[Any]]:
        """Random float64 arguments for the equivalence check, one list for each kind of call."""

    @abstractmethod
    def summary(self) -> str:
        """What is fused, for the report."""

    @abstractmethod
    def skipped(self) -> list[str]:
        """What runs unchanged at present, and why."""


@dataclass(frozen=True)
class PatchSpec:
    """How modules of a class are accelerated. Pickled with them."""

    plan: type[ForwardPlan]
    method: str  # that is replaced
    parts: int = 1  # k of partial channels
    nested: bool = False  # whether the weights of a cell come as a table for each node
    edge_weights: tuple[bool, ...] = (False,)  # whether a cell is given β; both where it may be


def own_forward(module: nn.Module, method: str) -> Callable[..., Any]:
    """The method of the module's class as it was before `accelerate`, a function of the module and its arguments."""
    function: Callable[..., Any] = getattr(original_class(module), method)
    return function


_verdicts: dict[Hashable, str | None] = {}


def plan_of(module: nn.Module, spec: PatchSpec) -> ForwardPlan:
    """A plan that the equivalence check has confirmed; it runs once for each signature.

    Raises:
        Unsupported: the structure does not fit, or the equivalence check fails.
    """
    if any("forward" in vars(inner) for inner in module.modules()):
        # It usually refers to the module itself, so a copy would still run the original.
        raise Unsupported("its forward is overridden on the instance")
    key = spec, signature(module)
    if (known := _verdicts.get(key)) is not None:
        raise Unsupported(known)
    plan = spec.plan(module, spec)
    if key not in _verdicts:
        _verdicts[key] = mismatch(
            module,
            plan.arguments,
            lambda twin, arguments: own_forward(twin, spec.method)(twin, *arguments),
            lambda twin, arguments: spec.plan(twin, spec).run(twin, *arguments),
        )
        if (reason := _verdicts[key]) is not None:
            raise Unsupported(reason)
    return plan


class Holder:
    """Holds the plan of a module, in the `__dict__` of the module; neither copied nor pickled with it."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.plan: ForwardPlan | None = None
        self.reason = ""  # why there is no plan

    def __reduce__(self) -> tuple[type[Holder], tuple[()]]:
        return Holder, ()


def holder_of(module: nn.Module) -> Holder:
    """The module's plan, made anew if the module has changed."""
    holder: Holder | None = vars(module).get(HOLDER)
    if holder is not None and holder.watch is not None and holder.watch.is_of(module):
        return holder
    holder = Holder()
    vars(module)[HOLDER] = holder
    try:
        holder.plan = plan_of(module, spec_of(module))
    except Unsupported as unsupported:
        holder.reason = str(unsupported)
    holder.watch = Watch(module)
    return holder


def spec_of(module: nn.Module) -> PatchSpec:
    spec: PatchSpec = getattr(type(module), "_fastnas_spec")  # noqa: B009 (mypy knows no such attribute)
    return spec


def is_accelerated(module: nn.Module) -> bool:
    return hasattr(type(module), "_fastnas_spec")


def accelerate_in_place(module: nn.Module, spec: PatchSpec, plan: ForwardPlan | None = None) -> None:
    """plan: a confirmed plan of the module, if there is one already."""
    module.__class__ = _accelerated(original_class(module), spec)
    if plan is not None:
        holder = vars(module)[HOLDER] = Holder()
        holder.plan, holder.watch = plan, Watch(module)


def restore_in_place(module: nn.Module) -> None:
    if is_accelerated(module):
        module.__class__ = original_class(module)
        vars(module).pop(HOLDER, None)


def runs_as_it_is() -> bool:
    """Whether something follows the computation that cannot look into the operators: a tracer, torch.compile (which
    fuses by itself), functorch, forward-mode differentiation, hooks on all modules."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or nn.modules.module._has_any_global_hook()
    )


_classes: dict[tuple[Any, PatchSpec], type[nn.Module]] = {}


def _accelerated(cls: type[nn.Module], spec: PatchSpec) -> type[nn.Module]:
    """The accelerated subclass of a class, cached."""
    if (cls, spec) not in _classes:
        _classes[cls, spec] = _subclass(cls, spec)
    return _classes[cls, spec]


def _subclass(cls: Any, spec: PatchSpec) -> type[nn.Module]:
    own = getattr(cls, spec.method)

    @functools.wraps(own)
    def fused(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if not runs_as_it_is() and (plan := holder_of(self).plan) is not None:
            given = _positional(own, self, arguments, keywords) if keywords else arguments
            if given is not None and (output := plan.run(self, *given)) is not None:
                return output
        return own(self, *arguments, **keywords)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = super(subclass, self).__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        function, given, *rest = reduced
        given = tuple(cls if each is subclass else each for each in given)
        return _rebuilt, (spec, function, given), *rest

    names = {
        spec.method: fused,
        "__reduce_ex__": reduce_ex,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_fastnas_original": cls,
        "_fastnas_spec": spec,
    }
    subclass: type[nn.Module] = type(cls)(cls.__name__, (cls,), names)
    return subclass


def _rebuilt(spec: PatchSpec, function: Callable[..., nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    module = function(*arguments)
    accelerate_in_place(module, spec)
    return module


def _positional(
    own: Callable[..., Any], module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Any, ...] | None:
    """All arguments as positional ones; None if some are keyword-only."""
    try:
        bound = inspect.signature(own).bind(module, *arguments, **keywords)
    except TypeError:  # which the own forward raises, too
        return None
    bound.apply_defaults()
    return None if bound.kwargs else bound.args[1:]
