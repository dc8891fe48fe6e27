"""A user's own package: nothing in it is called unless the command line names it."""

import pytest

from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import Targets
from src.evaluate import main as evaluate
from src.export import main as export
from src.sample import main as sample
from src.train import main as train
from tests.command import REPOSITORY, in_process, run
from tests.runs import TINY
from tests.user_package import Doubled

OWN = ["trust=[tests.user_package]", "backbone._target_=tests.user_package.Doubled"]


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A run with a network from a user's package."""
    folder = tmp_path_factory.mktemp("users")
    words = [*TINY, "trainer.max_steps=2", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    status, _, err = in_process(train, *words, OWN[1], cwd=folder)
    assert status == 2
    assert err.splitlines() == [
        "error: backbone: calls tests.user_package.Doubled, which is not part of this project (no option in conf/); if "
        "you trust the code of tests, add trust=[tests] to the command line"
    ]
    assert list(folder.iterdir()) == []  # refused before training
    status, _, err = in_process(train, *words, *OWN, cwd=folder)
    assert status == 0, err
    return folder


def test_a_users_own_network_is_named_at_the_command_line(users, tmp_path):
    """For training, sampling, evaluating, exporting and resuming alike."""
    model = f"ckpt_path={users}/run/checkpoints/last.ckpt"
    network = load(users / "run/checkpoints/last.ckpt", trust=["tests.user_package"]).model.network
    assert isinstance(network, Doubled)
    assert "trust" not in (users / "run" / "overrides.yaml").read_text()
    for main, *words in (
        (sample, model, "num_samples=2", "sampler.num_steps=1", "output_dir=a"),
        (evaluate, model, "num_samples=10", "sampler.num_steps=1", "output_dir=b", "metrics.steps=10"),
        (export, model, "format=safetensors", "output_dir=c"),
        (sample, "pretrained=c/denoiser.safetensors", "num_samples=2", "sampler.num_steps=1", "output_dir=d"),
        (train, f"resume={users}/run", "trainer.max_steps=3"),
    ):
        status, _, err = in_process(main, *words, cwd=tmp_path)
        assert status == 2
        assert len(err.splitlines()) == 1
        assert "calls tests.user_package.Doubled" in err
        assert "add trust=[tests] to the command line" in err
        status, _, err = in_process(main, *words, "trust=[tests.user_package]", cwd=tmp_path)
        assert status == 0, err


def test_trust_is_for_classes_and_functions_that_the_package_defines():
    targets = Targets(trust=["tests.user_package"])
    assert targets.find("tests.user_package.Doubled") is Doubled
    for name in ("os", "os.system", "Doubled.__init__", "__builtins__", "torch", "VALUE", "missing", "nn.Linear"):
        with pytest.raises(ConfigError, match=r"calls tests\.user_package"):
            targets.find(f"tests.user_package.{name}")
    for name in ("tests.user_packages.Doubled", "tests.hostile_nodes.at", "user_package.Doubled", "tests.user_package"):
        with pytest.raises(ConfigError, match="not part of this project"):
            targets.find(name)
    for trust in ("tests", ["os"], ["os.path"], ["a b"], [1], [""], ["${x}"], {"a": 1}, None):
        with pytest.raises(ConfigError, match="trust="):
            Targets(trust=trust)


@pytest.mark.slow
def test_a_sweep_trusts_what_its_words_trust(tmp_path):
    """In the separate process of each job, and when the sweep is resumed."""
    words = [*TINY, *OWN, "trainer.max_steps=2", "trainer.val_check_interval=2", "seed=0,1", "hydra.sweep.dir=sweep"]
    for more in ([], ["resume=true"]):
        status, out, err = run("src.train", "-m", *words, *more, cwd=tmp_path, PYTHONPATH=f"{REPOSITORY}")
        assert status == 0, err
        assert "2 of 2 jobs done" in out
        (tmp_path / "sweep" / "1" / "metrics.json").unlink()  # as if it had been interrupted
