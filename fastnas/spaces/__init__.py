"""Search spaces: candidate names, topology, genotype rules. A new space is one file and one entry here."""

from fastnas.errors import UserError
from fastnas.spaces import darts, egnas, multi_level, nb201
from fastnas.spaces.cell_space import CELL_KINDS, CellSpace
from fastnas.spaces.encoding import Code, Encoding

SPACES: dict[str, CellSpace] = {module.SPACE.name: module.SPACE for module in (darts, egnas, multi_level, nb201)}

__all__ = ["CELL_KINDS", "SPACES", "CellSpace", "Code", "Encoding", "find"]


def find(space: str | CellSpace) -> CellSpace:
    """A space by name; a space itself is passed through. UserError for an unknown name."""
    if isinstance(space, CellSpace):
        return space
    if space not in SPACES:
        raise UserError(f"unknown search space {space!r}: expected one of {', '.join(SPACES)}, or a CellSpace.")
    return SPACES[space]
