"""The space of DARTS with five kinds of cells: normal and reduction cells of a low and a middle level, and
normal cells of a high one."""

from fastnas.genotype import LEVELS
from fastnas.spaces import darts
from fastnas.spaces.cell_space import CellSpace

SPACE = CellSpace(
    name="multi-level",
    candidates=darts.SPACE.candidates,
    pool_norm=True,
    kinds=LEVELS,
)
