"""A user's project, as in docs/extending.md: its package, its options, and the programs with --config-dir."""

import re
import sys

import pytest
import yaml

from lightning_diffusion.app import evaluate, export, sample, train
from lightning_diffusion.app.words import split
from tests.command import REPOSITORY, in_process, run
from tests.runs import TINY

TRUST, CONFIG_DIR = "trust=[my_package]", "--config-dir=my_conf"
WORDS = [*TINY, "data=stripes", "trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=16"]
EXPERIMENT = """\
# @package _global_
defaults:
  - override /data: stripes
  - override /callbacks: default
data:
  batch_size: 8
"""
SAMPLER = """\
_target_: my_package.samplers.Halted
time_grid: ${time_grid}
num_steps: 2
"""
HALTED = '''
from lightning_diffusion.diffusion.samplers.base import Sampler


class Halted(Sampler):
    """Returns x_T as it is."""

    def step(self, denoiser, x_t, t, s, noise, state):
        return x_t, state
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Its folder, with the files of the page and more options; the package can be imported."""
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    shown = dict(re.findall(r"```\w+\n# (my_\S+)\n(.*?)```", text, re.DOTALL))
    assert set(shown) == {"my_package/data.py", "my_conf/data/stripes.yaml"}
    more = {
        "my_conf/experiment/stripes.yaml": EXPERIMENT,
        "my_conf/data/digits.yaml": "_target_: my_package.data.Stripes\n",  # the package's own comes first
        "my_conf/sampler/halted.yaml": SAMPLER,
        "my_package/samplers.py": HALTED,
    }
    for name, content in (shown | more).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def test_every_program_takes_the_projects_options(project):
    status, _, err = in_process(train.main, CONFIG_DIR, *WORDS, "hydra.run.dir=run", cwd=project)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "data: calls my_package.data.Stripes, which is not part of this project" in err
    assert "add trust=[my_package] to the command line" in err
    assert not (project / "run").exists()

    status, _, err = in_process(train.main, *WORDS, CONFIG_DIR, TRUST, "hydra.run.dir=run", cwd=project)
    assert status == 0, err
    assert yaml.safe_load((project / "run" / "config.yaml").read_text())["data"]["num_classes"] == 2
    assert "trust" not in (project / "run" / "overrides.yaml").read_text()

    model = f"ckpt_path={project}/run/checkpoints/last.ckpt"
    for main, *words in (
        (sample.main, model, "num_samples=2", "sampler.num_steps=1", "output_dir=a"),
        (sample.main, CONFIG_DIR, model, "num_samples=2", "sampler=halted", "output_dir=b"),
        (
            evaluate.main,
            model,
            CONFIG_DIR,
            "samplers=[halted]",
            "reference=stripes",
            "num_samples=10",
            "metrics.steps=10",
        ),
        (export.main, model, "format=safetensors", "output_dir=c"),
    ):
        status, _, err = in_process(main, *words, TRUST, cwd=project)
        assert status == 0, err


def test_a_run_is_resumed_with_the_folder_that_it_needs(project):
    assert in_process(train.main, *WORDS, CONFIG_DIR, TRUST, "hydra.run.dir=run", cwd=project)[0] == 0
    again = ["resume=run", TRUST, "trainer.max_steps=4"]
    status, _, err = in_process(train.main, *again, cwd=project)
    assert status == 2
    assert err.startswith("error: resume=run: overrides.yaml chooses data=stripes, which is not an option of conf/")
    assert "--config-dir" in err
    status, _, err = in_process(train.main, CONFIG_DIR, "resume=run", cwd=project)
    assert status == 2
    assert "add trust=[my_package]" in err
    status, _, err = in_process(train.main, *again, CONFIG_DIR, cwd=project)
    assert status == 0, err
    assert (project / "run" / "metrics.csv").read_text()
    assert yaml.safe_load((project / "run" / "config.yaml").read_text())["trainer"]["max_steps"] == 4


def test_an_experiment_of_the_folder_and_the_order_of_folders(project):
    """An option of the package comes before one of the same name."""
    _, out, _ = in_process(train.main, "--config-dir", "my_conf", "experiment=stripes", "--cfg", "job", cwd=project)
    data = yaml.safe_load(out)["data"]
    assert (data["_target_"], data["batch_size"]) == ("my_package.data.Stripes", 8)
    _, out, _ = in_process(train.main, CONFIG_DIR, "--cfg", "job", cwd=project)
    assert yaml.safe_load(out)["data"]["_target_"] == "lightning_diffusion.data.digits.Digits"


def test_help_shows_the_options_of_both_folders(project):
    _, out, _ = in_process(train.main, "--help", cwd=project)
    assert "stripes" not in out
    _, out, _ = in_process(train.main, CONFIG_DIR, "--help", cwd=project)
    assert "conf/ and my_conf/" in out
    assert re.search(r"^  data  .*digits\*, .*\smnist,(?:\s+\w+,)*\s+stripes$", out, re.MULTILINE | re.DOTALL)
    assert " halted," in out
    _, out, _ = in_process(train.main, "--help", "data", "--config-dir", "my_conf", cwd=project)
    assert "data=stripes\n    _target_: my_package.data.Stripes" in out
    assert "data=digits\n    # 1,797 handwritten" in out
    assert "data=digits\n    _target_: my_package" not in out


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["data=stripe"], "did you mean stripes?"),
        (["stripes"], "did you mean experiment=stripes?"),
        (["data=stripes", "data.batchsize=3"], "did you mean data.batch_size?"),
        (["sampler=halted", "sampler.numsteps=3"], "did you mean sampler.num_steps?"),
    ],
    ids=str,
)
def test_misspelt_options_of_the_folder(project, words, answer):
    status, out, err = in_process(train.main, *words, CONFIG_DIR, cwd=project)
    assert (status, out) == (2, "")
    assert answer in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [["--config-dir=none"], ["-cd", "none"], ["--config-dir=none", "--help"]], ids=str)
def test_a_folder_that_is_not_there(tmp_path, words):
    status, out, err = in_process(train.main, *words, "seed=1", cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err == f"error: --config-dir={tmp_path}/none: no such folder; give one with the layout of conf/\n"


def test_flags_may_stand_among_words():
    """Hydra refuses flags between words."""
    argv = ["a=1", "-m", "b=2", "--config-dir", "x=y", "--info", "~c", "--cfg=job", "-p", "data"]
    assert split(argv) == (["-m", "--config-dir=x=y", "--info=all", "--cfg=job", "-p=data"], ["a=1", "b=2", "~c"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["hydra/launcher=joblib"]], ids=["basic", "joblib"])
def test_the_jobs_of_a_sweep_see_the_folder(project, how):
    """Each in a process of its own, also when the sweep is started again, and from a launcher's own processes."""
    words = [*WORDS, CONFIG_DIR, TRUST, "-m", "seed=0,1", "hydra.sweep.dir=sweep", *how]
    path = f"{project}:{REPOSITORY}:{REPOSITORY}/src"
    for more in ([], ["resume=true"]):
        status, out, err = run("src.train", *words, *more, cwd=project, timeout=300, PYTHONPATH=path)
        assert status == 0, f"{out}\n{err}"
        assert "2 of 2 jobs done" in out
        (project / "sweep" / "1" / "metrics.json").unlink()  # as if it had been cut
