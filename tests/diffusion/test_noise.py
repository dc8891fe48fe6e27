import pytest
import torch

from lightning_diffusion.diffusion.noise import BatchRNG, IndexedNoise, stream_seed


def test_noise_of_an_item_does_not_depend_on_its_batch():
    alone = IndexedNoise(3, [5], (1, 4, 4))
    together = IndexedNoise(3, range(10), (1, 4, 4))
    for _ in range(3):
        assert torch.equal(alone()[0], together()[5])


def test_items_seeds_and_streams_differ():
    seeds = {stream_seed("sample", 0, i) for i in range(100_000)}
    assert len(seeds) == 100_000
    first = IndexedNoise(0, [0], (64,))()
    for other in (
        IndexedNoise(0, [1], (64,)),
        IndexedNoise(1, [0], (64,)),
        IndexedNoise(0, [0], (64,), stream="validation"),
    ):
        assert abs(torch.corrcoef(torch.cat([first, other()]))[0, 1]) < 0.5


def test_noise_is_standard_normal():
    x = IndexedNoise(0, range(2000), (50,))()
    assert abs(float(x.mean())) < 5 / 100_000**0.5
    assert abs(float(x.var()) - 1) < 5 * (2 / 100_000) ** 0.5
    # rows of neighbouring items are independent: the mean of N products has standard error 1/√N
    assert abs(float((x[1:] * x[:-1]).mean())) < 5 / 100_000**0.5


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_what_one_process_would_draw(world_size):
    like, share = torch.empty(16, 1, 3, 3), 16 // world_size
    whole = BatchRNG(7)
    expected = [whole.normal(like), whole.uniform(16), whole.spread(16)]
    ranks = [BatchRNG(7, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [(draws.normal(like[:share]), draws.uniform(share), draws.spread(share)) for draws in ranks]
    for one, several in zip(expected, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(several), one)


def test_draws_follow_their_seed_or_the_common_generator():
    assert torch.equal(BatchRNG(1).uniform(9), BatchRNG(1).uniform(9))
    assert not torch.equal(BatchRNG(1).uniform(9), BatchRNG(2).uniform(9))
    torch.manual_seed(3)
    first = BatchRNG().uniform(9)
    assert not torch.equal(first, BatchRNG().uniform(9))
    torch.manual_seed(3)
    assert torch.equal(first, BatchRNG().uniform(9))
