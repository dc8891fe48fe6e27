"""Misspelt and wrong command lines: one line each, with the word that was meant or the remedy, and exit status 2."""

import re
import shlex

import pytest

from lightning_diffusion.app import evaluate, export, report, sample, summary, train
from lightning_diffusion.system.version import version
from tests.command import in_process

PROGRAMS = {
    f"src.{module.__name__.rpartition('.')[2]}": module.main
    for module in (train, sample, evaluate, export, summary, report)
}
LINES = [
    ("src.train lr=0.1", "optimizer.lr?"),
    ("src.train schedule.t=250", "schedule.T?"),
    ("src.train T=250", "schedule.T?"),
    ("src.train trainer.lr=0.1", "optimizer.lr?"),
    ("src.train +lr=0.1", "optimizer.lr?"),
    ("src.train batch_size=32", "data.batch_size?"),
    ("src.train trainer.maxsteps=100", "trainer.max_steps?"),
    ("src.train ema=0.99", "module.ema_decay?"),
    ("src.train shedule=linear", "schedule?"),
    ("src.train foo=1", "--help shows the keys"),
    ("src.train schedule=lineer", "linear?"),
    ("src.train schedule=Cosine", "cosine?"),
    ("src.train data=fashion-mnist", "fashion_mnist?"),
    ("src.train experiment=cifar", "cifar10?"),
    ("src.train recipe=cifar", "recipe=cifar: no such option; did you mean cifar10?"),
    ("src.train ~recipe", "recipe: choose one option of this group; --help recipe shows them"),
    ("src.train model=gan backbone=dot", "backbone: not used by model=gan; leave it out, or choose model=diffusion"),
    (
        "src.train model=vae backbone.dim=8",
        "backbone.dim: not used by model=vae; leave it out",
    ),
    ("src.train game=minimax", "game: not used by model=diffusion; leave it out, or choose model=gan"),
    ("src.train edit=inpaint", "edit: not used by this program; leave it out"),
    ("src.train fashion_mnist_quik", "experiment=fashion_mnist_quick?"),
    ("src.train sampler=unipc sampler.oder=3", "sampler.order?"),
    ("src.train --lr 0.1", "optimizer.lr=0.1?"),
    ("src.train --optimizer.lr=0.1", "optimizer.lr=0.1?"),
    ("src.train --schedule linear", "schedule=linear?"),
    ("src.train --batch-size 32", "data.batch_size=32?"),
    ("src.train --halp", "--help?"),
    ("src.train --multi schedule=linear,cosine", "--multirun?"),
    ("src.train --help samplr", "sampler?"),
    ("src.train --cfg jobs", "choose job, hydra, all"),
    ("src.train mnist", "experiment=mnist?"),
    ("src.train schedule = linear", "schedule=…?"),
    ("src.train schedule=linear,cosine", "add -m to sweep"),
    ("src.train 'data.root=My pictures (1)'", "\"data.root='My pictures (1)'\""),
    ("src.train schedule.T=ten", "expected a whole number"),
    ("src.sample chkpt_path=a.ckpt", "ckpt_path?"),
    ("src.sample ckpt_path=a.ckpt steps=10", "sampler.num_steps?"),
    ("src.evaluate ckpt_path=a.ckpt metrics=likelihood num_samples=8", "give num_images=8"),
    ("src.evaluate ckpt_path=a.ckpt num_images=8", "give num_samples=8"),
    ("src.report run=runs", "runs?"),
    ("src.export --ckpt a.ckpt", "ckpt_path=a.ckpt?"),
    ("src.summary backbone=unnet", "unet?"),
]


@pytest.mark.parametrize(("line", "answer"), LINES, ids=[line for line, _ in LINES])
def test_a_wrong_command_line_is_answered_in_a_line(tmp_path, line, answer):
    program, *words = shlex.split(line)
    status, out, err = in_process(PROGRAMS[program], *words, cwd=tmp_path)
    assert (status, out) == (2, "")
    (said,) = err.splitlines()
    assert said.startswith("error: ")
    assert answer in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version_is_the_projects(tmp_path, program):
    status, out, err = in_process(PROGRAMS[program], "--version", cwd=tmp_path)
    assert (status, out, err) == (0, f"{version()}\n", "")
    assert re.fullmatch(r"lightning-diffusion \d+\.\d+\.\d+", version())


@pytest.mark.parametrize("words", [["-m", "--help"], ["--help", "schedule"], ["-h", "experiment=mnist"]], ids=str)
def test_flags_and_groups_that_there_are_get_their_help(tmp_path, words):
    status, out, err = in_process(train.main, *words, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out


def test_flags_with_values_are_hydras(tmp_path):
    status, out, err = in_process(train.main, "schedule=linear", "--cfg", "job", "--package", "schedule", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "lightning_diffusion.diffusion.beta.linear" in out
