import pytest
import torch

from lightning_diffusion.diffusion import threefry
from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise, spread, stream_key, stream_seed

# Random123's kat_vectors: rounds, counter, key, words
KNOWN_ANSWERS = """
    13 00000000 00000000 00000000 00000000 9d1c5ec6 8bd50731
    13 ffffffff ffffffff ffffffff ffffffff fd36d048 2d17272c
    13 243f6a88 85a308d3 13198a2e 03707344 ba3e4725 f27d669e
    20 00000000 00000000 00000000 00000000 6b200159 99ba4efe
    20 ffffffff ffffffff ffffffff ffffffff 1cb996fc bb002be7
    20 243f6a88 85a308d3 13198a2e 03707344 c4923a9c 483df7a0
    32 00000000 00000000 00000000 00000000 cee3d47e a23dfd5c
    32 ffffffff ffffffff ffffffff ffffffff 6e2fe0d0 b1b76f82
    32 243f6a88 85a308d3 13198a2e 03707344 e2827716 c3c05cdf
"""
CASES = [
    (int(rounds), *(int(word, 16) for word in words))
    for rounds, *words in (line.split() for line in KNOWN_ANSWERS.split("\n") if line.strip())
]


def word(value):
    return torch.tensor([value]).to(torch.int32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]:08x}")
def test_words_are_the_published_ones(case):
    rounds, c_0, c_1, k_0, k_1, *expected = case
    assert [int(x) & 0xFFFFFFFF for x in threefry.threefry(word(c_0), word(c_1), (k_0, k_1), rounds)] == expected


def reference(c_0, c_1, key):
    """The same by Python's integers, with the rotations of the paper's Table 1."""
    k, x = [*key, key[0] ^ key[1] ^ 0x1BD11BDA], [c_0, c_1]
    for i in range(threefry.ROUNDS + 1):
        if i % 4 == 0:
            x = [(x[0] + k[i // 4 % 3]) % 2**32, (x[1] + k[(i // 4 + 1) % 3] + i // 4) % 2**32]
        if i < threefry.ROUNDS:
            r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
            total = (x[0] + x[1]) % 2**32
            x = [total, ((x[1] << r | x[1] >> 32 - r) % 2**32) ^ total]
    return x


def test_words_are_counted_by_position_and_item():
    """Across 2³¹ and 2³², where int32 wraps."""
    items, first = [0, 5, 2**31 - 1, 2**31, 2**32 - 1], 2**31 - 2
    key = stream_key("sample", 3)
    for number, got in enumerate(threefry.words(key, torch.tensor(items), first, 4)):
        expected = [[reference(first + j, item, key)[number] for j in range(4)] for item in items]
        assert (got.long() & 0xFFFFFFFF).tolist() == expected


def test_normal_numbers_are_quantiles_of_the_words():
    items, shape = torch.tensor([7, 3]), (3, 3)
    k = torch.cat(threefry.words((1, 2), items, 11, 5), dim=1).double().div(2**8).floor()
    expected = torch.special.ndtri((k + 0.5) / 2**24 + 0.5)[:, :9].reshape(2, 3, 3)
    got = threefry.normal((1, 2), items, 11, shape)
    assert got.dtype == torch.float32
    assert float((got - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(("w", "z"), [(-(2**31), -5.41998), (2**31 - 1, 5.41998), (0, 7.47e-8), (-1, -7.47e-8)])
def test_the_most_extreme_words_give_finite_numbers(monkeypatch, w, z):
    drawn = torch.full((1, 1), w, dtype=torch.int32)
    monkeypatch.setattr(threefry, "words", lambda *_: (drawn, drawn))
    assert threefry.normal((0, 0), torch.zeros(1, dtype=torch.long), 0, (2,)).tolist() == [[pytest.approx(z, 1e-3)] * 2]


def test_a_uniform_number_is_below_1():
    u = threefry.uniform(stream_key("train", 0), torch.arange(2**20), 0)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())


def chi_squared(counts, expected):
    """In standard deviations from its mean: about N(0, 1) for many cells."""
    cells = counts.numel() - 1
    return (float(((counts.double() - expected) ** 2 / expected).sum()) - cells) / (2 * cells) ** 0.5


CELLS = 4096
EDGES = torch.special.ndtri(torch.arange(1, CELLS, dtype=torch.float64) / CELLS)


@pytest.mark.parametrize("count", [10**6, pytest.param(10**7, marks=pytest.mark.slow)])
def test_normal_numbers_fill_cells_of_equal_probability(count):
    x = IndexedNoise(0, range(count // 1000), (1000,))().flatten().double()
    counts = torch.bucketize(x, EDGES).bincount(minlength=CELLS)
    assert abs(chi_squared(counts, count / CELLS)) < 4.5
    tail = int((x.abs() > 4.5).sum())  # of probability 6.8e-6
    assert abs(tail - 6.795e-6 * count) < 5 * (6.795e-6 * count) ** 0.5


def test_uniform_numbers_fill_cells_of_equal_probability():
    rng = BatchRNG(1)
    u = torch.cat([rng.uniform(50_000) for _ in range(20)])
    assert abs(chi_squared((u * CELLS).long().bincount(minlength=CELLS), len(u) / CELLS)) < 4.5


def test_moments_are_those_of_a_normal_distribution():
    x = IndexedNoise(0, range(1000), (1000,))().double()
    N = x.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(float((x**power).mean()) - mean) < 5 * (variance / N) ** 0.5, power


PAIRS = (
    {  # what two sets of numbers differ in -> the two, from the first draw x (items, numbers of one)
        "number": lambda x: (x[:, :-1], x[:, 1:]),
        "sequence": lambda x: x.chunk(2, dim=1),
        "item": lambda x: (x[:-1], x[1:]),
        "item, by 256": lambda x: (x[:-256], x[256:]),
        "draw": lambda x: (x, draws(2)[1]),
        "draw, by 2": lambda x: (x, draws(3)[2]),
        "stream": lambda x: (x, draws(1, stream="validation")[0]),
    }
    | {f"seed {seed}": lambda x, seed=seed: (x, draws(1, seed)[0]) for seed in (1, 2, 256, 2**31, 2**32, -1)}
)


def draws(count, seed=0, stream="sample"):
    noise = IndexedNoise(seed, range(400), (1000,), stream=stream)
    return [noise() for _ in range(count)]


@pytest.mark.parametrize("name", PAIRS)
def test_numbers_are_independent(name):
    """By correlations of values and of squares, and by the joint counts of 32 × 32 cells."""
    a, b = PAIRS[name](draws(1)[0])
    a, b = a.flatten().double(), b.flatten().double()
    N = len(a)
    assert abs(float((a * b).mean())) < 5 / N**0.5
    assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) < 5 * 2 / N**0.5
    cells = [torch.bucketize(x, EDGES[127::128].contiguous()) for x in (a, b)]
    assert abs(chi_squared((32 * cells[0] + cells[1]).bincount(minlength=1024), N / 1024)) < 4.5


def test_noise_of_an_item_does_not_depend_on_its_batch():
    together = IndexedNoise(3, range(10), (1, 5, 5))
    draws = [together() for _ in range(3)]
    for items in ([5], [9, 2, 5], range(1, 10, 2)):
        noise = IndexedNoise(3, items, (1, 5, 5))
        for draw in draws:
            assert torch.equal(noise(), draw[list(items)])


def test_every_draw_takes_new_words():
    noise, items = IndexedNoise(3, [4, 2], (5, 5)), torch.tensor([4, 2])
    for first in (0, 13, 26):  # half of 25 numbers, rounded up
        assert torch.equal(noise(), threefry.normal(stream_key("sample", 3), items, first, (5, 5)))
    rng, like, key = BatchRNG(3, 2), torch.empty(2, 5, 5), stream_key("train", 3)
    positions = torch.tensor([2, 3])
    assert torch.equal(rng.uniform(2), threefry.uniform(key, positions, 0))
    assert torch.equal(rng.normal(like), threefry.normal(key, positions, 1, (5, 5)))
    assert torch.equal(rng.normal(like), threefry.normal(key, positions, 14, (5, 5)))
    assert torch.equal(rng.spread(2)[:1], threefry.uniform(key, positions[:1], 27))
    assert torch.equal(rng.uniform(2), threefry.uniform(key, positions, 28))


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (1, 5, 5)])
def test_noise_has_any_shape_and_takes_no_items(shape):
    assert IndexedNoise(0, range(4), shape)().shape == (4, *shape)
    assert IndexedNoise(0, [], shape)().shape == (0, *shape)


def test_seeds_of_dropout_differ():
    assert len({stream_seed("dropout", 0, i) for i in range(100_000)}) == 100_000


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_draw_the_rows_that_one_process_would(world_size):
    like, share = torch.empty(16, 1, 3, 3), 16 // world_size
    whole = BatchRNG(7, 32)
    expected = [whole.normal(like), whole.uniform(16), whole.spread(16)]
    ranks = [BatchRNG(7, 32, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [(draws.normal(like[:share]), draws.uniform(share), draws.spread(share)) for draws in ranks]
    for one, several in zip(expected, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(several), one)


def test_training_noise_belongs_to_the_position_of_an_image():
    """Whatever the size of the batch that it is in."""
    small, large, like = BatchRNG(7, 12), BatchRNG(7, 8), torch.empty(8, 1, 3, 3, dtype=torch.float64)
    assert torch.equal(small.normal(like[:4]), large.normal(like)[4:])
    assert torch.equal(small.uniform(4), large.uniform(8)[4:])
    assert small.normal(like).dtype == torch.float64


def test_stratified_times_are_spread_over_the_batch_and_change_with_it():
    u, other = BatchRNG(7, 0).spread(50), BatchRNG(7, 50).spread(50)
    assert float((u.sort().values.diff() - 0.02).abs().max()) < 1e-6
    assert abs(float((u[0] - other[0] + 0.5) % 1) - 0.5) > 1e-3


def test_draws_follow_their_seed_or_the_common_generator():
    assert torch.equal(BatchRNG(1).uniform(9), BatchRNG(1).uniform(9))
    assert not torch.equal(BatchRNG(1).uniform(9), BatchRNG(2).uniform(9))
    rng = BatchRNG(1)
    assert not torch.equal(rng.uniform(9), rng.uniform(9))
    torch.manual_seed(3)
    first = BatchRNG().uniform(9)
    assert not torch.equal(first, BatchRNG().uniform(9))
    torch.manual_seed(3)
    assert torch.equal(first, BatchRNG().uniform(9))


def test_golden_multiples_are_those_of_python():
    for indices in (range(100), range(10**6, 10**6 + 50), [5, 3]):
        assert spread(indices).tolist() == [i * ((5**0.5 - 1) / 2) % 1 for i in indices]
