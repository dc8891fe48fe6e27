"""The error of each deterministic sampler against the exact probability flow of a mixture of Gaussians.

python -m benchmarks.sampler_error [PLOT.png]

Needs:  nothing beyond this project.
Prints: the table of docs/samplers.md, the error by sampler, time grid and number of evaluations.
Takes:  under a minute on a CPU.
"""

import torch

from benchmarks.turns import Table, parser_of
from lightning_diffusion.diffusion.analytic import GaussianMixture
from lightning_diffusion.diffusion.continuous import VP
from lightning_diffusion.diffusion.samplers.adams_bashforth import AdamsBashforth
from lightning_diffusion.diffusion.samplers.base import Sampler
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.samplers.dpm_solver import DPMSolverMultistep, DPMSolverSinglestep
from lightning_diffusion.diffusion.samplers.euler import Heun
from lightning_diffusion.diffusion.samplers.ode import ODE
from lightning_diffusion.diffusion.samplers.unipc import UniPC
from lightning_diffusion.diffusion.time_grid import Karras, LogSNR, TimeGrid, Trailing

F64 = torch.float64
BUDGETS = (5, 10, 20, 50)
GRIDS: dict[str, TimeGrid] = {"trailing": Trailing(), "logsnr": LogSNR(), "karras": Karras()}
COUNT = 512


def mixture() -> GaussianMixture:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    means = torch.tensor([[0.8, 0.0], [-0.6, 0.7], [-0.5, -0.8]], dtype=F64)
    return GaussianMixture(VP(), weights, means, 0.02 * torch.eye(2, dtype=F64).expand(3, 2, 2))


def samplers(grid: TimeGrid) -> dict[str, Sampler]:
    return {
        "sampler=ddim": DDIM(grid),
        "sampler=heun": Heun(grid, 1),
        "sampler=adams_bashforth": AdamsBashforth(grid),
        "sampler=dpm_singlestep": DPMSolverSinglestep(grid),
        "sampler=dpm_multistep": DPMSolverMultistep(grid),
        "sampler=dpm_multistep sampler.order=3": DPMSolverMultistep(grid, order=3),
        "sampler=unipc": UniPC(grid),
        "sampler=unipc sampler.order=3": UniPC(grid, order=3),
    }


def walk(denoiser: GaussianMixture, sampler: Sampler, num_steps: int) -> torch.Tensor:
    sampler.num_steps = num_steps
    generator = torch.Generator().manual_seed(0)
    *_, x = sampler.walk(denoiser, lambda: torch.randn(COUNT, 2, dtype=F64, generator=generator))
    return x


def errors() -> dict[tuple[str, str], list[float]]:
    """The root mean square error at each budget of evaluations, relative to 4,000 steps of UniPC(3)."""
    denoiser = mixture()
    exact = walk(denoiser, UniPC(LogSNR(), order=3), 4000)
    rows = {}
    for grid_name, grid in GRIDS.items():
        for name, sampler in samplers(grid).items():
            steps = [max(1, round((b - sampler.start_evaluations) / sampler.evaluations)) for b in BUDGETS]
            rows[name, grid_name] = [float((walk(denoiser, sampler, n) - exact).square().mean().sqrt()) for n in steps]
    return rows


def adaptive() -> dict[float, tuple[float, float]]:
    """Maps the tolerance of sampler=ode to (evaluations per sample, error)."""
    denoiser, evaluated = mixture(), [0]
    exact = walk(denoiser, UniPC(LogSNR(), order=3), 4000)
    denoiser.register_forward_pre_hook(lambda module, args: evaluated.append(len(args[0])))
    rows = {}
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        evaluated.clear()
        x = walk(denoiser, ODE(Trailing(), tolerance=tolerance), 1)
        rows[tolerance] = (sum(evaluated) / COUNT, float((x - exact).square().mean().sqrt()))
    return rows


def plot(rows: dict[tuple[str, str], list[float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(GRIDS), figsize=(12, 4), sharey=True)
    for axis, grid_name in zip(axes, GRIDS, strict=True):
        for name in samplers(Trailing()):
            label = name.replace("sampler=", "").replace(" sampler.order=", " ")
            axis.loglog(BUDGETS, rows[name, grid_name], marker="o", markersize=4, label=label)
        axis.set(title=f"time_grid={grid_name}", xlabel="network evaluations", xticks=BUDGETS)
        axis.set_xticklabels(BUDGETS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("plot", metavar="PLOT.png", nargs="?", help="file for a plot of the table")
    given = parser.parse_args()
    rows = errors()
    table = Table("sampler_error", "sampler", "time grid", *map(str, BUDGETS))
    for (name, grid_name), found in rows.items():
        table.add(f"`{name}`", grid_name, *(f"{error:.1e}" for error in found))
    for tolerance, (evaluations, error) in adaptive().items():
        print(f"`sampler=ode sampler.tolerance={tolerance:g}`: {evaluations:.0f} evaluations, error {error:.1e}")
    if given.plot is not None:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
