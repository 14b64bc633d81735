"""The space of EG-NAS (Cai et al. 2024): that of DARTS without "none", average pool first, pools not normalised."""

from fastnas.spaces.cell_space import CellSpace

SPACE = CellSpace(
    name="egnas",
    candidates=(
        "avg_pool_3x3",
        "max_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    ),
    pool_norm=False,
)
