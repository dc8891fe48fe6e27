"""What the documentation shows is what the code does."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing

ROOT = Path(__file__).parent.parent
GROUPS = (
    "experiment|callbacks|schedule|parameterization|sampler|logger|backbone|edit|metrics|guidance"
    "|distance|time_grid|time_sampler|sweep|debug"
)


def test_the_sampler_of_the_extension_guide_works_and_equals_ddim(tmp_path):
    """Ref: DDIM §4.3: DDIM(0) is Euler's method on the probability-flow ODE in σ/α."""
    text = (ROOT / "docs" / "extending.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    denoiser = Gaussian(schedules.cosine(), torch.full((4,), 0.3), 0.2 * torch.eye(4))
    arguments = (denoiser, range(4), (1, 2, 2), 0)
    euler, ddim = scope["Euler"](20, Trailing()).sample(*arguments), DDIM(Trailing(), 20).sample(*arguments)
    torch.testing.assert_close(euler, ddim, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/mathematics.md",
        "docs/backbones.md",
        "docs/metrics.md",
        "docs/hardware.md",
        "docs/sweeps.md",
        "benchmarks/README.md",
        "docs/recipes.md",
    ],
)
def test_a_page_names_only_files_and_options_that_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for group, options in re.findall(rf"\b({GROUPS})=([\w,]+)", text):
        for option in options.strip(",").split(","):
            assert (ROOT / "conf" / group / f"{option}.yaml").exists(), f"{group}={option}"
    for module in re.findall(r"python -m ((?:src|benchmarks)(?:\.\w+)+)", text):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").exists()


def test_the_sweep_that_wandb_leads_is_the_preset():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    theirs = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    preset = yaml.safe_load((ROOT / "conf" / "sweep" / "T_and_beta.yaml").read_text())
    values = {key: ",".join(map(str, node["values"])) for key, node in theirs["parameters"].items()}
    assert values == preset["hydra"]["sweeper"]["params"]
    assert theirs["command"][:3] == ["python", "-m", "${program}"]
    assert (theirs["program"], theirs["metric"]["name"]) == ("src.train", "val/bits_per_dim")
