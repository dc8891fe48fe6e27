"""Batches of samples."""


def shard_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """The batches of samples 0 … count − 1 that a rank draws: every world_size-th one.

    A batch holds the same samples for any number of ranks.
    """
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    return batches[rank::world_size]
