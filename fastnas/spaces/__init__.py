"""Search spaces: candidate names, topology, genotype rules. A new space is one file and one entry here."""

from fastnas.errors import UserError
from fastnas.spaces import darts, egnas
from fastnas.spaces.cell_space import CELL_KINDS, CellSpace

SPACES = {module.SPACE.name: module.SPACE for module in (darts, egnas)}

__all__ = ["CELL_KINDS", "SPACES", "CellSpace", "find"]


def find(space: str | CellSpace) -> CellSpace:
    """A space by name; a space itself is passed through. UserError for an unknown name."""
    if isinstance(space, CellSpace):
        return space
    if space not in SPACES:
        raise UserError(f"unknown search space {space!r}: expected one of {', '.join(SPACES)}, or a CellSpace.")
    return SPACES[space]
