"""The training steps that benchmarks compare."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.loop import BareLoop, configuration, module_of, random_batches
from benchmarks.peers import PEERS, Peer, installed
from benchmarks.sizes import Size


@dataclass(frozen=True)
class Contender:
    """A network and its complete training step: loss, gradient, clipping, optimizer, moving average."""

    network: nn.Module
    step: Callable[[], object]


def ours(size: Size, *words: str) -> Contender:
    arguments = configuration([*size.words, *words])
    module = module_of(arguments).to(size.device)
    loop = BareLoop(module, random_batches(arguments.data), arguments.trainer)
    return Contender(module.model.network, loop.step)


def theirs(peer: type[Peer], size: Size) -> Contender:
    built = peer(size)
    return Contender(built.network, functools.partial(built.step, size.batch()))


def peers() -> dict[str, Callable[[Size], Contender]]:
    """The installed peers, as functions that build a contender."""
    return {name: functools.partial(theirs, PEERS[name]) for name in installed()}
