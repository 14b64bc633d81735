"""What the computation of a module may depend on besides its parameters, and whether that has changed."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor, nn

# Left out: the mode, since the equivalence check runs in both, and the mark of DataParallel's replicas.
_IGNORED = {"training", "_is_replica"}
HOLDER = "_fastnas_plan"  # the attribute that `accelerate` adds
_PLAIN = {bool, int, float, str, type(None)}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before `accelerate`."""
    found: type[nn.Module] = getattr(type(module), "_fastnas_original", type(module))
    return found


def is_layer(module: nn.Module) -> bool:
    """Whether the module's class is one of torch's."""
    return original_class(module).__module__.startswith("torch.nn.modules.")


# Left out for layers of torch: sizes, which the pattern tells, and p of a dropout, which is checked in each call.
_CHANNELS = {"in_channels", "out_channels", "groups", "num_features", "p"}


def signature(module: nn.Module) -> Hashable:
    """Equal for modules of the same classes with the same plain attributes, children included."""
    ignored = _IGNORED | _CHANNELS if is_layer(module) else _IGNORED
    kept = tuple(
        (name, frozen)
        for name, value in vars(module).items()
        if name not in ignored and (frozen := _frozen(value)) is not None
    )
    children = tuple((name, signature(child)) for name, child in module._modules.items() if child is not None)
    return original_class(module), kept, children


def _frozen(value: Any) -> Hashable:
    """The value, hashable; None where it says nothing: a tensor, a module, the dictionaries of nn.Module."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind in (dict, OrderedDict, Tensor) or isinstance(value, nn.Module):
        return None
    if isinstance(value, list | tuple) and len(value) <= 64:
        parts = [_frozen(each) for each in value]
        return None if None in parts else (kind, *parts)
    if callable(value):
        return ("callable", value)
    return None


def own_hooks(module: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries of a module's hooks."""
    return [getattr(module, name) for name in _HOOKS]


def hooks_of(module: nn.Module) -> Iterator[dict[int, Any]]:
    """The dictionaries of hooks of a module and of all modules in it."""
    for inner in module.modules():
        yield from own_hooks(inner)


def _size(attributes: dict[str, Any]) -> int:
    return len(attributes) - (HOLDER in attributes)


class Watch:
    """Notices, cheaply, that a module has changed."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._classes = [(inner, type(inner)) for inner in module.modules() if inner is not module]
        self._children = [(inner._modules, dict(inner._modules)) for inner in module.modules()]
        self._attributes = [
            (vars(inner), name, value)
            for inner in module.modules()
            if not is_layer(inner)
            for name, value in vars(inner).items()
            if name not in _IGNORED and isinstance(value, bool | int | float | str | None)
        ]
        self._sizes = [(vars(inner), _size(vars(inner))) for inner in module.modules() if not is_layer(inner)]

    def is_of(self, module: nn.Module) -> bool:
        """Whether this is the watched module, unchanged. (A shallow copy still has the watch of its original.)"""
        return (
            self._module() is module
            and all(children == known for children, known in self._children)
            and all(type(inner) is cls for inner, cls in self._classes)
            and all(_size(attributes) == size for attributes, size in self._sizes)
            and all(attributes.get(name, self) == value for attributes, name, value in self._attributes)
        )
