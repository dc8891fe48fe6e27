"""The levels of a U-Net as data: the resolutions, and the channels of every stage."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_diffusion.codecs.image_size import ImageSize, typed
from lightning_diffusion.networks.layers import patch_rows_columns

MAX_GROUPS, MIN_GROUP_CHANNELS = 32, 4
MAX_BLOCKS = 1_000  # of a level; more would fill the memory with their plan before any layer is made


class Level(NamedTuple):
    """The stages of one resolution.

    Args:
        in_channels: of each stage; on the way up, those of the skip connection included.
        out_channels: of every stage.
        attention: whether self-attention follows each residual block.
        resampled: whether a change of resolution follows the level.
    """

    in_channels: tuple[int, ...]
    out_channels: int
    attention: bool
    resampled: bool


def plan_levels(
    channels: int, channel_mults: Sequence[int], num_blocks: int, attention: Sequence[bool]
) -> tuple[list[Level], list[Level]]:
    """The levels on the way down and on the way up, in the order of the forward pass.

    The outputs of the stem, of each stage and of each downsampling are skip connections. The way up takes them in
    reverse order, one per stage.

    Args:
        channels: width of the stem.
        channel_mults: width of each level as a multiple of `channels`.
        num_blocks: stages of a level on the way down; the way up has one more.
        attention: whether each level attends.
    """
    skips, down, up = [channels], list[Level](), list[Level]()
    for mult, attends in zip(channel_mults, attention, strict=True):
        width, resampled = channels * mult, len(down) < len(channel_mults) - 1
        down.append(Level((skips[-1], *[width] * (num_blocks - 1)), width, attends, resampled))
        skips += [width] * (num_blocks + resampled)
    width = skips[-1]
    for level in reversed(down):
        in_channels = []
        for _ in range(num_blocks + 1):
            in_channels.append(width + skips.pop())
            width = level.out_channels
        up.append(Level(tuple(in_channels), width, level.attention, resampled=bool(skips)))
    return down, up


def level_sides(image_size: ImageSize, patch_size: int, channel_mults: Sequence[int]) -> list[int]:
    """The longer side of each level, in patches.

    Raises:
        ValueError: patches that do not fill the image, or levels that shrink to fewer than two pixels.
    """
    longer, shorter = ([side] for side in sorted(patch_rows_columns(image_size, patch_size), reverse=True))
    for sides in (longer, shorter):
        for _ in channel_mults[1:]:
            sides.append((sides[-1] + 1) // 2)
    if shorter[-1] < 2:
        raise ValueError(
            f"backbone.channel_mults={list(channel_mults)} and data.image_size={typed(image_size)}: the levels shrink "
            f"to {shorter} pixels; choose fewer multiples"
        )
    return longer


def levels_that_attend(attention_resolutions: Sequence[int], sides: list[int]) -> list[bool]:
    """Whether each level attends. Raises ValueError for a resolution that no level has."""
    unreached = [resolution for resolution in attention_resolutions if resolution not in sides]
    if unreached:
        raise ValueError(
            f"backbone.attention_resolutions={list(attention_resolutions)}: no level is {unreached[0]} pixels wide "
            f"on its longer side; choose among {sides}"
        )
    return [side in attention_resolutions for side in sides]


def group_count(norm_groups: int | None, channels: int) -> int:
    """The groups of each normalization. None chooses the most that leave every group at least four channels.

    Raises:
        ValueError: groups that do not divide the channels.
    """
    if norm_groups is None:
        most = min(MAX_GROUPS, channels // MIN_GROUP_CHANNELS)
        return max(groups for groups in range(1, most + 1) if channels % groups == 0)
    if norm_groups < 1 or channels % norm_groups:
        raise ValueError(
            f"backbone.norm_groups={norm_groups} and backbone.channels={channels}: choose groups that divide them"
        )
    return norm_groups


def check_sizes(channels: int, channel_mults: Sequence[int], num_blocks: int, outputs: int) -> None:
    """Raises ValueError for a number out of range."""
    if channels < 4 or channels % 2:
        raise ValueError(f"backbone.channels={channels}: choose an even number >= 4")
    if not channel_mults or min(channel_mults) < 1:
        raise ValueError(f"backbone.channel_mults={list(channel_mults)}: choose one multiple >= 1 for each level")
    if not 1 <= num_blocks <= MAX_BLOCKS:
        raise ValueError(f"backbone.num_blocks={num_blocks}: choose 1 to {MAX_BLOCKS:,}")
    if outputs not in (1, 2):
        raise ValueError(f"backbone.outputs={outputs}: choose 1, or 2 for a prediction and the variance")
