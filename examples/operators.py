# %% [markdown]
# # The operators of fastnas, one by one
#
# Run it cell by cell in an editor, or as a whole: `python examples/operators.py` (seconds; `--tiny` for a test).
# Each cell computes something in plain PyTorch and with an operator, checks that both agree, and prints what is saved:
# time of forward and backward, and the memory that a forward pass keeps for its backward pass.

# %%
import statistics
import sys
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnas.nn
from fastnas import ops

TINY = "--tiny" in sys.argv
B, C, SIZE = (2, 4, 8) if TINY else (32, 16, 32)  # images, channels, pixels a side
ROUNDS = 1 if TINY else 9
torch.manual_seed(0)


def images(channels: int = C) -> Tensor:
    """[B, channels, SIZE, SIZE], channels-last, which the operators read without a copy."""
    return torch.randn(B, channels, SIZE, SIZE).contiguous(memory_format=torch.channels_last).requires_grad_()


def kept(run: Callable[[], Tensor]) -> float:
    """Megabytes that a forward pass keeps for its backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values()) / 2**20


def compare(name: str, plain: Callable[[], Tensor], fused: Callable[[], Tensor], inputs: Iterable[Tensor] = ()) -> None:
    """Checks that both give the same, and the same gradients of `inputs`; prints medians of times taken in turns."""
    wanted = [each for each in inputs if each.requires_grad]
    y, z = plain(), fused()
    torch.testing.assert_close(z, y, rtol=1e-3, atol=1e-3)
    if wanted:
        grad = torch.randn_like(y)
        pairs = zip(torch.autograd.grad(z, wanted, grad), torch.autograd.grad(y, wanted, grad), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    times: dict[Callable[[], Tensor], list[float]] = {plain: [], fused: []}
    for _ in range(ROUNDS):
        for run, seconds in times.items():
            began = time.perf_counter()
            result = run()
            if wanted:
                torch.autograd.grad(result, wanted, grad)
            seconds.append(time.perf_counter() - began)
    before, after = (1000 * statistics.median(seconds) for seconds in times.values())
    memory = f"kept {kept(plain):6.1f} → {kept(fused):5.1f} MB" if wanted else "no gradient"
    print(f"{name:14} {before:8.2f} → {after:7.2f} ms  {before / after:5.1f}×   {memory}")


print(f"{'':14} plain torch → fastnas, {B} images [{C}, {SIZE}, {SIZE}], {torch.get_num_threads()} threads")

# %% [markdown]
# ## mixed_sum: Σ_k w_k · o_k
# Plain torch reads and writes a whole tensor for every product and every addition, and keeps what it multiplied.

# %%
outputs = [images() for _ in range(8)]
weights = torch.softmax(torch.randn(8), dim=0).requires_grad_()


def plain_sum() -> Tensor:
    return sum(w * o for w, o in zip(weights, outputs, strict=True))


compare("mixed_sum", plain_sum, lambda: ops.mixed_sum(outputs, weights), [weights, *outputs])

# %% [markdown]
# ## pool: both pools of an edge, in one pass
# They have no parameters, so they are the same on all edges that leave a state: a cell computes them once.

# %%
x = images()


def plain_pools() -> Tensor:
    return torch.cat([F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), F.max_pool2d(x, 3, 1, 1)], dim=1)


compare("pool", plain_pools, lambda: torch.cat(ops.pool(x)[:2], dim=1), [x])

# %% [markdown]
# ## preprocess: ReLU and a 1×1 convolution of concatenated states, without the concatenation

# %%
states = [images() for _ in range(4)]
matrix = torch.randn(C, 4 * C, requires_grad=True)


def plain_preprocess() -> Tensor:
    return F.conv2d(F.relu(torch.cat(states, dim=1)), matrix[:, :, None, None])


compare("preprocess", plain_preprocess, lambda: ops.preprocess(states, matrix)[0], [matrix, *states])

# %% [markdown]
# ## stage: ReLU → depthwise → pointwise, all candidates of a state at once
# It can return mean and variance of its outputs; what reads them next, a stage or a node, normalises with these.

# %%
kernels = [(3, 1), (5, 1), (3, 2), (5, 2)]  # kernel and dilation of sep_conv_3x3, …, dil_conv_5x5
dilations = [dilation for _, dilation in kernels]
taps = [torch.randn(C, 1, kernel, kernel, requires_grad=True) for kernel, _ in kernels]
matrices = [torch.randn(C, C, 1, 1, requires_grad=True) for _ in kernels]


def plain_stages() -> Tensor:
    results = []
    for tap, square, dilation in zip(taps, matrices, dilations, strict=True):
        y = F.conv2d(F.relu(x), tap, padding=dilation * (tap.shape[-1] // 2), dilation=dilation, groups=C)
        results.append(F.conv2d(y, square))
    return torch.cat(results, dim=1)


def fused_stages() -> Tensor:
    return torch.cat(ops.stage([x], taps, matrices, dilations)[0], dim=1)


compare("stage", plain_stages, fused_stages, [x, *taps, *matrices])

# %% [markdown]
# ## node_sum: Σ_k w_k · BatchNorm(y_k), normalised while it is summed

# %%
raw = [images() for _ in range(8)]
with torch.no_grad():
    variance, mean = torch.var_mean(torch.stack(raw), dim=(1, 3, 4), correction=0)  # [8, C]; `stage` gives them
    mean, rstd = mean[:, None], (variance[:, None] + 1e-5).rsqrt()  # [8, 1, C]


def plain_node() -> Tensor:
    return sum(w * F.batch_norm(y, None, None, training=True) for w, y in zip(weights, raw, strict=True))


compare("node_sum", plain_node, lambda: ops.node_sum(raw, mean, rstd, weights), [weights, *raw])

# %% [markdown]
# ## edge_sum: all candidates of an edge added up in one pass, in evaluation mode, for a whole population
# Ten architectures that share the weights: a dilated convolution, both pools and the identity.

# %%
P = 10
arch_weights = torch.softmax(torch.randn(P, 4), dim=-1)  # [P, candidates]


@torch.no_grad()
def plain_population() -> Tensor:
    y = F.conv2d(F.conv2d(F.relu(x), taps[2], padding=2, dilation=2, groups=C), matrices[2])
    terms = [y, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), F.max_pool2d(x, 3, 1, 1), x]
    return torch.cat([sum(w * term for w, term in zip(row, terms, strict=True)) for row in arch_weights])


@torch.no_grad()
def fused_population() -> Tensor:
    scales = arch_weights[:, None, :, None].expand(-1, 1, -1, C)  # [P, edges, candidates, C]
    none = torch.empty(1, 0, C)
    edges = ops.edge_sum(x, taps[2:3], matrices[2:3], [1], [2], none, none, scales, torch.zeros(P, 1, C), shared=True)
    return edges[0]


compare("edge_sum", plain_population, fused_population)

# %% [markdown]
# ## augment_batch: uint8 images in, a batch out
# Random crops, flips, normalisation and cutout in one pass; random numbers depend on (key, stream, position) alone.

# %%
photos = torch.randint(0, 256, (4 * B, SIZE, SIZE, 3), dtype=torch.uint8)
table = ops.normalization_table(mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])
chosen = torch.randperm(len(photos))[:B]
words = ops.philox(torch.arange(2 * B), key=1, stream=0).view(B, 8)[:, :5]  # [B, 5] of 0..2³² - 1
limits = torch.tensor([9, 9, 2, SIZE, SIZE])
draws = (words * limits >> 32).int()  # top, left, flip, row and column of the cutout's centre

compare(
    "augment_batch",
    lambda: ops.augment_batch_reference(photos, table, chosen, draws, padding=4, cutout=SIZE // 2),
    lambda: ops.augment_batch(photos, table, chosen, draws, padding=4, cutout=SIZE // 2),
)

# %% [markdown]
# ## color_jitter: brightness, contrast, saturation and hue of each image

# %%
factors = torch.rand(B, 4) * torch.tensor([0.8, 0.8, 0.8, 0.2]) + torch.tensor([0.6, 0.6, 0.6, -0.1])
jittered = ops.color_jitter(photos[:B], factors)  # uint8 [B, SIZE, SIZE, 3]
most = (jittered.int() - ops.color_jitter_reference(photos[:B], factors).int()).abs().max()
print(f"{'color_jitter':14} agrees with torchvision up to {most} of 255 levels")

# %% [markdown]
# ## MixedOp: all of it together
# The eight candidates of DARTS on one edge. `backend="reference"` is the same module in plain torch.

# %%
names = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"]
names += ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
mixed = fastnas.nn.MixedOp(names, channels=C)
reference = fastnas.nn.MixedOp(names, channels=C, backend="reference")
reference.load_state_dict(mixed.state_dict())


compare("MixedOp", lambda: reference(x, weights), lambda: mixed(x, weights), [x, weights])
