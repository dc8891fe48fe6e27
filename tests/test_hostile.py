"""Files that want to run code: none of them does, whatever reads them."""

import http.server
import os
import pickle
import shutil
import threading
import zipfile

import pytest
import torch

from lightning_diffusion.checkpoints.folder import read_checkpoint
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.checkpoints.seal import write_sealed
from src.train import main as train
from tests.command import in_process, run
from tests.files import seal_anyway
from tests.runs import TINY


class Hostile:
    """Unpickled, it leaves a trace."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def content(**parts):
    return {"state_dict": {}, "hyper_parameters": {"denoiser": {}}, **parts}


def write_legacy(path, bomb):
    torch.save(content(state_dict=bomb), path, _use_new_zipfile_serialization=False)


def write_bare_pickle(path, bomb):
    path.write_bytes(pickle.dumps(content(state_dict=bomb)))


def write_second_pickle(path, bomb):
    """A clean archive whose data.pkl is replaced."""
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(content(state_dict=bomb)) if name.endswith("data.pkl") else data)


def write_with_seal(path, bomb):
    """What a thief of the folder can write too."""
    write_sealed(path, lambda file: torch.save(content(callbacks=bomb), file), 1, 1)


WRITERS = {
    "state dict": lambda path, bomb: torch.save(content(state_dict=bomb), path),
    "value": lambda path, bomb: torch.save(content(state_dict={"w": bomb}), path),
    "hyper-parameters": lambda path, bomb: torch.save(content(hyper_parameters=bomb), path),
    "configuration": lambda path, bomb: torch.save(content(hyper_parameters={"denoiser": bomb}), path),
    "optimizer": lambda path, bomb: torch.save(content(optimizer_states=[bomb]), path),
    "loops": lambda path, bomb: torch.save(content(loops=bomb), path),
    "key": lambda path, bomb: torch.save(content() | {("x", 1): bomb}, path),
    "whole": lambda path, bomb: torch.save(bomb, path),
    "legacy": write_legacy,
    "bare pickle": write_bare_pickle,
    "second pickle": write_second_pickle,
    "with seal": write_with_seal,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_12_checkpoints_that_run_code_when_unpickled(tmp_path, kind, monkeypatch):
    trace = tmp_path / "executed"
    WRITERS[kind](tmp_path / "a.ckpt", Hostile(os.mkdir, str(trace)))
    seal_anyway(tmp_path / "a.ckpt")
    pickle.loads(pickle.dumps(Hostile(os.mkdir, str(trace))))
    assert trace.exists()  # the bomb works
    trace.rmdir()
    for forced in (None, "1"):
        if forced:
            monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
        for read in (read_checkpoint, load):
            with pytest.raises(ValueError, match="a.ckpt: (damaged, or )?not a readable checkpoint of this project"):
                read(tmp_path / "a.ckpt")
    assert not trace.exists()


@pytest.mark.slow
def test_a_checkpoint_that_turns_hostile_is_not_executed_by_lightning_either(finished, tmp_path):
    """By none of the programs, even if torch is set to trust everything."""
    trace = tmp_path / "executed"
    torch.save(content(state_dict=Hostile(os.mkdir, str(trace))), tmp_path / "a.ckpt")
    seal_anyway(tmp_path / "a.ckpt")
    for program in ("src.train", "src.sample", "src.evaluate", "src.export"):
        arguments = ["ckpt_path=a.ckpt"] + (["reference=digits"] if program == "src.evaluate" else [])
        status, _, err = run(program, *arguments, cwd=tmp_path, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
        assert status == 2, err
        assert len(err.splitlines()) == 1
    assert not trace.exists()


def test_nothing_is_fetched(tmp_path):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.ckpt"
        for key in ("ckpt_path", "pretrained", "resume"):
            status, _, err = in_process(train, f"{key}={address}", cwd=tmp_path)
            assert status == 2
            assert f"{key}={address}" in err
            assert len(err.splitlines()) == 1
        server.shutdown()
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("optimizer_states"), "it has no optimizer state"),
        (lambda c: c.update(optimizer_states=[]), "it has no optimizer state"),
        (lambda c: c.pop("lr_schedulers"), "it has no learning-rate schedule"),
        (lambda c: c.pop("loops"), "it has no progress"),
        (
            lambda c: [c["state_dict"].pop(k) for k in list(c["state_dict"]) if "ema." in k],
            "it has no averaged weights",
        ),
        (lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))), "is missing there"),
        (
            lambda c: c["state_dict"].update(extra=torch.zeros(1)),
            "extra is (1,) there and missing in this configuration",
        ),
    ],
)
def test_a_part_that_is_missing_is_an_error(finished, tmp_path, change, message):
    checkpoint = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    seal_anyway(tmp_path / "a.ckpt")
    (tmp_path / "empty").mkdir()
    status, _, err = in_process(train, *TINY, f"ckpt_path={tmp_path}/a.ckpt", cwd=tmp_path / "empty")
    assert (status, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_checkpoint_of_another_network_is_named(finished, tmp_path):
    options = [*(option for option in TINY if "channels=8" not in option), "backbone.channels=16"]
    status, _, err = in_process(train, *options, f"ckpt_path={finished[0]}/checkpoints/last.ckpt", cwd=tmp_path)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert "choose the run's own backbone and objective, or continue the run with resume=RUN_DIR" in err


def test_a_checkpoint_of_another_optimizer_is_named(finished, tmp_path):
    options = [*TINY, "optimizer=adamw", f"ckpt_path={finished[0]}/checkpoints/last.ckpt"]
    status, _, err = in_process(train, *options, cwd=tmp_path)
    assert (status, len(err.splitlines())) == (2, 1), err
    assert "it was saved with another optimizer" in err


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(finished, tmp_path):
    """For every program that loads last.ckpt; any other damaged file is refused."""
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "c", symlinks=True)
    newest = tmp_path / "c" / "step_0000040.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert read_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == 20
    with pytest.raises(ValueError, match="damaged, or not a readable checkpoint of this project: it has no seal"):
        read_checkpoint(newest)
    options = [*TINY, f"ckpt_path={tmp_path}/c/last.ckpt", "trainer.max_steps=22", "hydra.run.dir=run"]
    status, _, err = in_process(train, *options, cwd=tmp_path)
    assert status == 0, err
    assert "continuing from step_0000020.ckpt" in err
