"""Any command line either trains or is refused in one line."""

import hydra
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from lightning_diffusion.app.assembly import assemble
from lightning_diffusion.app.cli import CONF, config_errors, explain
from lightning_diffusion.codecs.condition import by_label
from lightning_diffusion.configuration.errors import ConfigError

BASE = [  # small and quick, unless drawn otherwise
    "backbone.channels=8", "backbone.channel_mults=[1,2]", "backbone.num_blocks=1", "data.batch_size=4",
    "sampler.num_steps=3", "logger=csv", "trainer=cpu", "trainer.max_steps=3",
]  # fmt: skip
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("edit", "experiment", "logger")
}
VALUES = [
    "0", "1", "2", "3", "4", "8", "10", "64", "-1", "-5", "0.1", "0.5", "0.999", "1.0", "1.5", "1e-3", "-0.5", "1e-30",
    "nan", "inf", "-inf", "abc", "''", "null", "true", "false", "[]", "[1]", "[1,2]", "[-1]", "[abc]", "{}", "{a:1}",
    "[[1]]",
    "32-true", "bf16-mixed", "auto", "min", "squared", "../x", "ü", "[0.1,0.2]", "epsilon", "conv", "${seed}",
]  # fmt: skip


def composed(overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", overrides=overrides, return_hydra_config=True)
    with open_dict(config):
        chosen = config.pop("hydra").runtime.choices
        config.name, config.run_dir = chosen.data, "nowhere"
    return config


def keys():
    """All dotted keys of the configuration, those of options that are not the default too."""

    def dotted(node, path=""):
        for key, value in node.items() if isinstance(node, dict) else ():
            if key not in ("hydra", "run_dir", "name"):
                yield f"{path}{key}"
                yield from dotted(value, f"{path}{key}.")

    from omegaconf import OmegaConf

    found = set(dotted(OmegaConf.to_container(composed([]), resolve=False)))
    for group, options in GROUPS.items():
        for option in options:
            node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"), resolve=False)
            found |= {f"{group}.{key}" for key in dotted(node) if not key.startswith("defaults")}
    return sorted(found)


group_choice = st.sampled_from(sorted(GROUPS)).flatmap(
    lambda group: st.sampled_from([*GROUPS[group], GROUPS[group][0] + "x"]).map(lambda option: f"{group}={option}")
)
assignment = st.tuples(
    st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(keys()), st.sampled_from(VALUES)
).map(lambda parts: parts[0] + parts[1] + ("" if parts[0] == "~" else f"={parts[2]}"))
command_line = st.lists(st.one_of(group_choice, assignment), min_size=1, max_size=4)


def check_trains_or_is_refused(overrides):
    """One finite step of a tiny network on noise of the data's shape, or one line."""
    try:
        config = composed([*BASE, *overrides])
    except Exception as error:  # Hydra's own, which the program tells apart from bugs by when they come
        check_line(explain(error, "train"))
        return "refused"
    try:
        with config_errors():
            parts = assemble(config)
    except (ConfigError, OmegaConfBaseException) as error:
        check_line(explain(error, "train"))
        return "refused"
    module, data = parts.module, parts.datamodule
    x_0 = torch.rand(2, *data.shape) * 2 - 1
    labels = None if data.num_classes is None else torch.zeros(2, dtype=torch.long)
    optimizer = module.configure_optimizers()["optimizer"]
    loss = module.objective(module.model.denoiser, x_0, by_label(labels))
    loss.backward()
    optimizer.step()
    module.ema.update(module.model, 0)
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in module.model.denoiser.parameters() if p.grad is not None)
    return "trained"


def check_line(line):
    assert line.strip()
    assert "\n" not in line


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(command_line)
def test_20_random_command_lines(overrides):
    check_trains_or_is_refused(overrides)


@pytest.mark.slow
def test_1000_random_command_lines():
    seen = []

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(command_line)
    def thousand(overrides):
        seen.append(check_trains_or_is_refused(overrides))

    thousand()
    assert min(seen.count("trained"), seen.count("refused")) > 100
