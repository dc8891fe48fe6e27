"""What a network costs."""

from omegaconf import DictConfig
from rich.table import Table

from lightning_diffusion.app.classes import count_classes
from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.app.commands.train import Arguments, groups
from lightning_diffusion.codecs.image_size import height_width
from lightning_diffusion.configuration.arguments import parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.networks.summary import Summary, summarize
from lightning_diffusion.system.console import console, table


def main(config: DictConfig) -> None:
    """Prints parameters, FLOPs and activation memory of one image, and what lies at which resolution."""
    with mistakes():
        count_classes(config)
        arguments = parse(config, Arguments, groups())
        if "backbone" not in arguments.nodes:
            raise ConfigError("model: src.summary measures a backbone=…, and this model has none; choose another model")
        backbone, data = arguments.nodes["backbone"], arguments.data.node
        network = backbone.make()
        shape = (data["channels"], *height_width(data["image_size"]))
        summary = summarize(network, shape, data["num_classes"])
    terminal = console()
    terminal.print(_totals(backbone.name, shape, summary))
    terminal.print()
    terminal.print(_levels(summary))


def _totals(name: str, shape: tuple[int, int, int], summary: Summary) -> Table:
    rows = table()
    C, H, W = shape
    rows.add_row("network", f"{name} on {H}×{W}×{C}")
    rows.add_row("parameters", f"{summary.parameters:,}")
    rows.add_row("FLOPs", f"{summary.flops / 1e6:,.1f} M for one image, forward")
    rows.add_row(
        "activations", f"{summary.activation_bytes / 2**20:,.2f} MiB kept for one image's backward pass, float32"
    )
    return rows


def _levels(summary: Summary) -> Table:
    rows = table("resolution", "channels", "layers", "attention")
    for place, level in sorted(summary.levels.items(), reverse=True):
        side = "×".join(map(str, place)) if len(place) == 2 else f"{place[0]} tokens"
        widths = f"{min(level.channels)}–{max(level.channels)}" if len(level.channels) > 1 else str(*level.channels)
        heads = ", ".join(f"{h} head{'s' if h > 1 else ''}" for h in sorted(level.heads))
        rows.add_row(side, widths, str(level.layers), f"{level.attentions} of {heads}" if level.attentions else "–")
    return rows
