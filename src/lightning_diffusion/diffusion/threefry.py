"""Threefry-2x32, a counter-based generator: random numbers are a function of a counter and a key, without a state.

The bits are the same on every device. Normal numbers are the same up to float rounding.

Ref: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, §4.2
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Key = tuple[int, int]  # two words in [0, 2³²)

ROUNDS = 13  # the fewest with published test vectors; 20 take half as long again
PARITY = 0x1BD11BDA


def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A scalar on the CPU: any device takes it without a copy, and an operation starts faster than with a number."""
    return torch.tensor(value, dtype=dtype, device="cpu")


def _word(value: int) -> Tensor:
    """value mod 2³² as int32, whose sums and shifts to the left wrap."""
    return _scalar((value + 2**31) % 2**32 - 2**31, torch.int32)


_ROTATIONS = [(_word(32 - r), _word(2**r - 1), 2**r) for r in (13, 15, 26, 6, 17, 29, 16, 24)]
_EIGHT, _LOW_24 = _word(8), _word(2**24 - 1)
_HALF_STEP, _ROOT_2 = _scalar(2.0**-24, torch.float32), _scalar(math.sqrt(2), torch.float32)


def threefry(c_0: Tensor, c_1: Tensor, key: Key, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Two random words for each counter (c_0, c_1); int32 of shapes that broadcast.

        x_0 <- x_0 + x_1 ,  x_1 <- (x_1 <<< r) ⊕ x_0

    in each round, and the key is added before the first round and after every fourth.
    """
    (k_0, k_1), *schedule = _key_schedule(key, rounds)
    x_1 = c_1 + k_1
    x_0 = c_0 + k_0 + x_1  # of the whole shape
    x_1 = x_1.expand_as(x_0)
    rotated, spare = torch.empty_like(x_0), torch.empty_like(x_0)
    for i in range(rounds):
        shift, mask, factor = _ROTATIONS[i % 8]
        if i > 0:
            x_0.add_(x_1)
        torch.bitwise_right_shift(x_1, shift, out=rotated)
        rotated.bitwise_and_(mask).add_(x_1, alpha=factor).bitwise_xor_(x_0)  # the mask removes copies of the sign
        x_1, rotated = rotated, spare if i == 0 else x_1
        if i % 4 == 3:
            k_0, k_1 = schedule[i // 4]
            x_0.add_(k_0)
            x_1.add_(k_1)
    return x_0, x_1


@functools.lru_cache(maxsize=256)
def _key_schedule(key: Key, rounds: int) -> list[tuple[Tensor, Tensor]]:
    """What is added to (x_0, x_1) before the first round and after each four rounds."""
    k = (*key, key[0] ^ key[1] ^ PARITY)
    return [(_word(k[j % 3]), _word(k[(j + 1) % 3] + j)) for j in range(rounds // 4 + 1)]


def words(key: Key, items: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Words number first … first + count − 1 of both sequences of each item, 2 × (B, count) int32.

    Args:
        items: (B,) int64 in [0, 2³²).
    """
    counter = torch.arange(first, first + count, device=items.device)
    return threefry(counter.to(torch.int32), items.to(torch.int32)[:, None], key)


def uniform(key: Key, items: Tensor, first: int) -> Tensor:
    """u ~ U[0, 1) for each item, (B,) float32, a multiple of 2⁻²⁴; it uses 1 word of the sequences."""
    word, _ = words(key, items, first, 1)
    return ((word[:, 0] >> _EIGHT) & _LOW_24).float() * 2.0**-24


def normal(key: Key, items: Tensor, first: int, shape: Sequence[int]) -> Tensor:
    """z ~ N(0, I) for each item, (B, *shape) float32, |z| ≤ 5.42; it uses `num_words(shape)` words of each sequence.

        z = Φ⁻¹(u) = √2 erf⁻¹(2u − 1) ,  2u − 1 = (k + ½) 2⁻²³

    where k in [−2²³, 2²³) is the upper 24 bits of a word: 2u − 1 is exact in float32, and never ±1.
    """
    k = torch.cat(words(key, items, first, num_words(shape)), dim=1).bitwise_right_shift_(_EIGHT).float()
    z = torch.add(_HALF_STEP, k, alpha=2.0**-23, out=k).erfinv_().mul_(_ROOT_2)
    size = math.prod(shape)
    return (z if z.shape[1] == size else z[:, :size]).reshape(len(items), *shape)


def num_words(shape: Sequence[int]) -> int:
    """Words that `normal` takes from each of an item's two sequences."""
    return -(-math.prod(shape) // 2)
