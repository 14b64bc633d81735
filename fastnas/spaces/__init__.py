"""Search spaces: candidate names, topology, genotype rules. A new space is one file and one entry here."""

from fastnas.errors import UserError
from fastnas.python_object import PREFIX, load_object
from fastnas.spaces import darts, egnas, multi_level, nb201
from fastnas.spaces.cell_space import CELL_KINDS, CellSpace
from fastnas.spaces.encoding import Code, Encoding, encoding_of

SPACES: dict[str, CellSpace] = {module.SPACE.name: module.SPACE for module in (darts, egnas, multi_level, nb201)}

__all__ = ["CELL_KINDS", "SPACES", "CellSpace", "Code", "Encoding", "encoding_of", "find"]


def find(space: str | CellSpace) -> CellSpace:
    """A space by name, or the user's own as `python:MODULE:OBJECT`; a `CellSpace` is returned unchanged.

    Raises:
        UserError: an unknown name, or an object that cannot be imported or is not a `CellSpace`.
    """
    if isinstance(space, CellSpace):
        return space
    if space.startswith(PREFIX):
        found = load_object(space, "space")
        if not isinstance(found, CellSpace):
            raise UserError(f"the space {space} is a {type(found).__name__}: expected a fastnas.spaces.CellSpace.")
        return found
    if space not in SPACES:
        raise UserError(
            f"unknown search space {space!r}: expected one of {', '.join(SPACES)}, a CellSpace, or your own as "
            "python:MODULE:OBJECT."
        )
    return SPACES[space]
