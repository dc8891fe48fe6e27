"""The cost of a network."""

from omegaconf import DictConfig
from rich.table import Table

from lightning_diffusion.app.assembly import Arguments, count_classes, groups
from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.output import show, table
from lightning_diffusion.configuration.arguments import parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.networks.summary import Inputs, Summary, summarize


def main(config: DictConfig) -> None:
    """Print parameters, FLOPs and activation memory of one image, and the layers of each resolution."""
    with config_errors():
        count_classes(config)
        arguments = parse(config, Arguments, groups())
        model = arguments.model.make()
        network = model.network

        def example(count: int, device: str) -> Inputs:
            if (inputs := model.example(count, device)) is None:
                raise ConfigError(
                    f"model: the cost of a {type(network).__name__} cannot be measured; choose another model=…"
                )
            return inputs

        summary = summarize(network, example)
    show(_totals(type(network).__name__, model.shape, summary), "", _levels(summary))


def _totals(name: str, shape: tuple[int, int, int], summary: Summary) -> Table:
    totals = table()
    C, H, W = shape
    totals.add_row("network", f"{name} on {H}×{W}×{C}")
    totals.add_row("parameters", f"{summary.parameters:,}")
    totals.add_row("FLOPs", f"{summary.flops / 1e6:,.1f} M for one image, forward")
    totals.add_row(
        "activations", f"{summary.activation_bytes / 2**20:,.2f} MiB kept for one image's backward pass, float32"
    )
    return totals


def _levels(summary: Summary) -> Table:
    levels = table("resolution", "channels", "layers", "attention")
    for place, level in sorted(summary.levels.items(), reverse=True):
        side = "×".join(map(str, place)) if len(place) == 2 else f"{place[0]} tokens"
        widths = f"{min(level.channels)}–{max(level.channels)}" if len(level.channels) > 1 else str(*level.channels)
        heads = ", ".join(f"{h} head{'s' if h > 1 else ''}" for h in sorted(level.heads))
        levels.add_row(side, widths, str(level.layers), f"{level.attentions} of {heads}" if level.attentions else "–")
    return levels
