"""The space of DARTS (Liu et al. 2019), which PC-DARTS, P-DARTS and SNAS use, too."""

from fastnas.spaces.cell_space import CellSpace

SPACE = CellSpace(
    name="darts",
    candidates=(
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ),
    pool_norm=True,
)
