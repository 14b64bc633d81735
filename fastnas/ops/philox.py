"""philox: random numbers that depend on their position alone (Philox4x32-10; Salmon et al., SC 2011).

The numbers of a generator with a state depend on all draws before. Here a number depends on a key, a stream and a
position: any batch of any epoch can be drawn at any time, by any number of threads or processes, on a CPU or a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnas import _library  # noqa: F401  (registers torch.ops.fastnas)

_philox = torch.ops.fastnas.philox.default

LOW = 0xFFFFFFFF


def philox_reference(positions: Tensor, key: int, stream: int) -> Tensor:
    """The same in plain torch: the oracle of the tests and the baseline of the benchmarks."""
    a, b = positions & LOW, (positions >> 32) & LOW  # [n] each, as every word below
    c, d = torch.full_like(a, stream & LOW), torch.full_like(a, (stream >> 32) & LOW)
    k0, k1 = key & LOW, (key >> 32) & LOW
    for _ in range(10):
        x, y = a * 0xD2511F53, c * 0xCD9E8D57  # modulo 2⁶⁴, which is what int64 does
        a, b, c, d = ((y >> 32) & LOW) ^ b ^ k0, y & LOW, ((x >> 32) & LOW) ^ d ^ k1, x & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return torch.stack([a, b, c, d], dim=-1)  # [n, 4]


def philox(positions: Tensor, key: int, stream: int) -> Tensor:
    """Four random 32-bit words for each position.

    Args:
        positions: int64 [n], any values.
        key: -2⁶³..2⁶³-1; different keys give unrelated numbers.
        stream: -2⁶³..2⁶³-1; different streams of a key give unrelated numbers.

    Returns:
        int64 [n, 4], uniform in 0..2³²-1, on the device of `positions`. For an integer below m: ``words * m >> 32``
        (m at most 2³¹; its probabilities are off by less than m/2³²).

    Raises:
        RuntimeError: `positions` is not int64 [n].

    >>> import torch
    >>> from fastnas import ops
    >>> words = ops.philox(torch.arange(1000), key=7, stream=0)  # [1000, 4]
    >>> torch.equal(words[500:], ops.philox(torch.arange(500, 1000), key=7, stream=0))
    True
    >>> dice = 1 + (words * 6 >> 32)  # 1..6
    """
    result: Tensor = _philox(positions, key, stream)
    return result


@torch.library.register_fake("fastnas::philox")
def _(positions: Tensor, key: int, stream: int) -> Tensor:
    return positions.new_empty((*positions.shape, 4))
