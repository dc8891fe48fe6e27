"""Segmentation from few labelled scenes, started from a diffusion model's network and from nothing.

python -m benchmarks.label_efficiency FOLDER CHECKPOINT [--labels 16 64 …] [--steps 500] [-- key=value …]

Needs:  the checkpoint of a diffusion model of the same scenes, such as experiment=scenes model=diffusion backbone=unet.
        The words after -- apply to all runs. They include the same backbone=… and the same data.
Prints: the mean IoU on held-out scenes for each number of labelled scenes. FOLDER also has the runs of src.train, the
        table as label_efficiency.csv, and the plot label_efficiency.png.
Takes:  two runs of --steps steps for each number.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.turns import Table, parser_of
from lightning_diffusion.app.cli import CONF

LABELS = (16, 64, 256, 1024, 4096)
METRIC = "val/mean_iou"


def words_of(run_dir: Path, count: int, checkpoint: Path | None, steps: int, common: Sequence[str]) -> list[str]:
    """The words of src.train for a run on the first `count` scenes."""
    ends = [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", f"run_dir={run_dir}"]
    start = [] if checkpoint is None else [f"pretrained={checkpoint}"]
    return ["experiment=scenes", "logger=csv", *common, f"data.num_images={count}", *start, *ends]


def mean_iou(words: Sequence[str], run_dir: Path) -> float:
    """Trains, and returns the last mean IoU on held-out scenes."""
    subprocess.run([sys.executable, "-m", "src.train", *words], check=True, cwd=CONF.parent)
    return float(json.loads((run_dir / "metrics.json").read_text())[METRIC])


def plot(labels: Sequence[int], scores: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in scores.items():
        axes.plot(labels, values, marker="o", markersize=4, label=name)
    axes.set(xscale="log", xlabel="labelled scenes", ylabel="mean IoU on held-out scenes", ylim=(0, 1))
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the runs and of the results")
    parser.add_argument("checkpoint", type=Path, help="of the diffusion model")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="numbers of labelled scenes")
    parser.add_argument("--steps", type=int, default=500, help="of each run")
    middle = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, common = parser.parse_args(sys.argv[1:middle]), sys.argv[middle + 1 :]
    folder, checkpoint = given.folder.resolve(), given.checkpoint.resolve()
    starts = {"from the diffusion model": checkpoint, "from nothing": None}
    scores: dict[str, list[float]] = {name: [] for name in starts}
    table = Table("label_efficiency", "labelled scenes", *starts)
    for count in given.labels:
        for name, start in starts.items():
            run_dir = folder / f"{count}_{'nothing' if start is None else 'pretrained'}"
            scores[name].append(mean_iou(words_of(run_dir, count, start, given.steps, common), run_dir))
        table.add(count, *(values[-1] for values in scores.values()))
    table.write(folder)
    plot(given.labels, scores).savefig(folder / "label_efficiency.png", dpi=120)


if __name__ == "__main__":
    main()
