"""`patch`: accelerates every network that a code base constructs."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from torch import nn

from fastnas.compat.acceleration import accelerate
from fastnas.errors import UserError


@dataclass(frozen=True)
class Baseline:
    """Where a code base defines the modules that `accelerate` knows.

    Attributes:
        modules: their names, as its own code imports them.
        classes: the classes whose instances are accelerated once they are constructed.
    """

    modules: tuple[str, ...]
    classes: tuple[str, ...]


_CELLS = ("Cell", "MixedOp")
BASELINES = {
    "darts": Baseline(("model_search",), _CELLS),
    "pc-darts": Baseline(("model_search", "model_search_imagenet"), _CELLS),
    "p-darts": Baseline(("model_search",), _CELLS),
    "egnas": Baseline(("model_search", "model_search_imagenet"), _CELLS),
    "pt.darts": Baseline(("models.search_cells", "models.ops"), ("SearchCell", "MixedOp")),
    "xautodl": Baseline(
        ("xautodl.models.cell_searchs.search_cells",), ("NASNetSearchCell", "NAS201SearchCell", "MixedOp")
    ),
    "naslib": Baseline(
        ("naslib.optimizers.oneshot.darts.optimizer", "naslib.optimizers.oneshot.drnas.optimizer"),
        ("DARTSMixedOp", "DrNASMixedOp"),
    ),
    "nni": Baseline(
        ("nni.nas.oneshot.pytorch.supermodule.differentiable",), ("DifferentiableMixedLayer", "DifferentiableMixedCell")
    ),
    "confopt": Baseline(("confopt.searchspace.common.mixop",), ("OperationBlock", "OperationChoices")),
}
"""The code bases that `patch` knows by name."""

_active: dict[str, Patch] = {}


def patch(name: str, module: ModuleType | Sequence[ModuleType] | str | None = None) -> Patch:
    """Accelerates every network of a code base from now on, when it is constructed.

    The constructors of the code base's cells and mixed operations accelerate the new instance as their last step, so
    that `Network.new()`, a stage with other candidates or a copy are accelerated, too. Modules that are imported
    already are patched at once, others when they are imported. Instances that exist already stay as they are:
    `accelerate` them.

    Args:
        name: of the code base, one of `BASELINES`.
        module: where its classes are, if not where the original has them: a module, several, or the name of one.

    Returns:
        The patch; as a context manager it undoes itself: ``with patch("darts", model_search): …``.

    Raises:
        UserError: an unknown name, a module that cannot be found, or one without the classes.
    """
    if name not in BASELINES:
        raise UserError(f"cannot patch {name!r}: known code bases are {', '.join(map(repr, BASELINES))}.")
    unpatch(name)
    baseline = BASELINES[name]
    given = [module] if isinstance(module, ModuleType | str) else module
    made = Patch(name, baseline.classes)
    if given is None:
        made.watch(_findable(name, baseline))
    else:
        for each in given:
            if isinstance(each, str):
                if each not in sys.modules and not _is_there(each):
                    raise UserError(f"patch({name!r}): there is no module {each!r}. Is its folder in sys.path?")
                made.watch([each])
            elif not made.classes_of(each):
                expected = " or ".join(baseline.classes)
                raise UserError(f"patch({name!r}): module {each.__name__!r} has no class {expected}.")
            else:
                made.apply(each)
    _active[name] = made
    return made


def unpatch(name: str) -> None:
    """Undoes `patch`, if there was one. Instances that were made in the meantime stay accelerated.

    Raises:
        UserError: an unknown name.
    """
    if name not in BASELINES:
        raise UserError(f"cannot unpatch {name!r}: known code bases are {', '.join(map(repr, BASELINES))}.")
    if (made := _active.pop(name, None)) is not None:
        made.undo()


def _findable(name: str, baseline: Baseline) -> list[str]:
    found = [each for each in baseline.modules if each in sys.modules or _is_there(each)]
    if not found:
        names = " or ".join(map(repr, baseline.modules))
        raise UserError(
            f"patch({name!r}): cannot import {names}. Give the module that holds the classes "
            f"{' and '.join(baseline.classes)}: patch({name!r}, module)."
        )
    return found


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a package above it is missing
        return False


class Patch(AbstractContextManager["Patch"]):
    """A patch that is in force, until the end of its context or `unpatch`."""

    def __init__(self, name: str, classes: Sequence[str]) -> None:
        self.name, self.classes = name, classes
        self._undo: list[Callable[[], None]] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _active.get(self.name) is self:
            unpatch(self.name)

    def watch(self, names: Sequence[str]) -> None:
        """Patches modules by name, now or when they are imported."""
        for each in names:
            if each in sys.modules:
                self.apply(sys.modules[each])
        finder = _Finder([each for each in names if each not in sys.modules], self.apply)
        sys.meta_path.insert(0, finder)
        self._undo.append(lambda: sys.meta_path.remove(finder))

    def classes_of(self, module: ModuleType) -> list[type[nn.Module]]:
        found = [vars(module).get(name) for name in self.classes]
        return [each for each in found if isinstance(each, type) and issubclass(each, nn.Module)]

    def apply(self, module: ModuleType) -> None:
        for cls in self.classes_of(module):
            self._wrap(cls)

    def _wrap(self, cls: type[nn.Module]) -> None:
        own = vars(cls).get("__init__")
        inherited = cls.__init__
        if hasattr(inherited, "_fastnas_patch"):
            return

        @functools.wraps(inherited)
        def construct(self: nn.Module, *arguments: Any, **keywords: Any) -> None:
            inherited(self, *arguments, **keywords)
            if type(self) is cls:  # a subclass is complete only after its own constructor
                accelerate(self)

        construct._fastnas_patch = self.name  # type: ignore[attr-defined]
        cls.__init__ = construct  # type: ignore[method-assign]

        def undo() -> None:
            if own is None:
                del cls.__init__
            else:
                cls.__init__ = own  # type: ignore[method-assign]

        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


class _Finder(MetaPathFinder):
    """Lets the other finders find a module, and calls `then` once it has been executed."""

    def __init__(self, names: Sequence[str], then: Callable[[ModuleType], None]) -> None:
        self.names, self.then = list(names), then

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.names:
            return None
        self.names.remove(name)  # only once, so that the search below does not come back here
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.then)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.then(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
