from lightning_diffusion.data.order import EndlessShuffle, Sequential


def keys(order):
    return [(start, indices.tolist()) for start, indices in order]


def flat(order):
    return [i for _, indices in order for i in indices.tolist()]


def test_every_epoch_shows_every_image_once_in_a_new_order():
    stream = flat(EndlessShuffle(size=10, batch_size=4, num_batches=25, seed=0))  # ten epochs, with seams in batches
    epochs = [stream[i : i + 10] for i in range(0, 100, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 10
    assert stream != flat(EndlessShuffle(size=10, batch_size=4, num_batches=25, seed=1))


def test_a_batch_larger_than_the_data_wraps_around():
    (_, indices), *_ = EndlessShuffle(size=3, batch_size=8, num_batches=1, seed=0)
    assert indices.bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_going_on_later_gives_what_would_have_come():
    whole = keys(EndlessShuffle(size=10, batch_size=4, num_batches=12, seed=3))
    rest = EndlessShuffle(size=10, batch_size=4, num_batches=12, seed=3, first_batch=5)
    assert keys(rest) == whole[5:]
    assert keys(rest) == whole[5:]  # iterating has no side effect
    assert len(rest) == 12  # progress counts from 0


def test_ranks_share_out_the_batches_of_one_process():
    options = {"size": 10, "batch_size": 4, "num_batches": 7, "seed": 0}
    whole = keys(EndlessShuffle(**options))
    ranks = [keys(EndlessShuffle(**options, rank=r, world_size=2)) for r in range(2)]
    for (start, indices), (start_0, first), (start_1, second) in zip(whole, *ranks, strict=True):
        assert first + second == indices
        assert (start_0, start_1) == (start, start + 2)


def test_validation_shows_every_image_once_over_all_ranks():
    for size, world_size in ((10, 1), (10, 3), (9, 4), (2, 3)):
        ranks = [keys(Sequential(size, 4, rank, world_size)) for rank in range(world_size)]
        seen = sorted(i for rank in ranks for start, indices in rank for i in indices)
        assert seen == list(range(size))
        assert all(indices[0] == start for rank in ranks for start, indices in rank)
