"""Checkpoints that survive: kills, full disks and damaged files leave the last good one, and none is taken for good."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from typing import ClassVar

import lightning as L
import pytest
import torch

from src.checkpoint import read_checkpoint
from src.training.callbacks.checkpoint import LastCheckpoint
from src.training.durable import DurableCheckpointIO, NotSaved, checksum_of, is_intact, link, write
from tests import runs
from tests.command import REPOSITORY


def save(path, number, size=1000):
    content = {"state_dict": {"x": torch.full((size,), float(number))}, "hyper_parameters": {"denoiser": {}}}
    DurableCheckpointIO().save_checkpoint(content, path)


def saved_number(path):
    return int(read_checkpoint(path)["state_dict"]["x"][0])


def test_what_is_written_is_read(tmp_path):
    save(tmp_path / "below" / "a.ckpt", 7)
    assert saved_number(tmp_path / "below" / "a.ckpt") == 7
    assert sorted(path.name for path in (tmp_path / "below").iterdir()) == ["a.ckpt", "a.ckpt.sha256"]
    check = subprocess.run(["sha256sum", "-c", "a.ckpt.sha256"], cwd=tmp_path / "below", capture_output=True)
    assert check.returncode == 0


def test_of_400_truncations_and_400_flipped_bits_none_is_taken_for_good(tmp_path):
    save(path := tmp_path / "a.ckpt", 7)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(400):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(ValueError, match=r"ckpt_path=.*a.ckpt: damaged"):
            read_checkpoint(path)
    for _ in range(400):
        flipped, bit = bytearray(whole), draw.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"ckpt_path=.*a.ckpt: damaged"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert saved_number(path) == 7


def test_a_file_that_came_without_its_checksum_is_read(tmp_path):
    save(path := tmp_path / "a.ckpt", 7)
    checksum_of(path).unlink()
    assert saved_number(path) == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path):
    """Ten times more than fits, on a disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save(disk / "step_1.ckpt", 1, size=20_000)
        link(disk / "last.ckpt", disk / "step_1.ckpt")
        before = sorted(path.name for path in disk.iterdir())
        for number in range(2, 12):
            with pytest.raises(NotSaved, match=rf"step_{number}.ckpt: could not be saved .*earlier checkpoints are as"):
                save(disk / f"step_{number}.ckpt", number, size=200_000)
            assert saved_number(disk / "last.ckpt") == 1
            assert sorted(path.name for path in disk.iterdir()) == before
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    save(path := tmp_path / "a.ckpt", 1)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(NotSaved, match="a.ckpt: could not be saved \\(No space left on device\\)"):
        write(path, fail)
    assert saved_number(path) == 1
    assert len(list(tmp_path.iterdir())) == 2


SAVE_FOREVER = """
import itertools, sys
from pathlib import Path
from src.training.durable import link
from tests.training.test_durable import save
for number in itertools.count(1):
    save(Path(sys.argv[1]) / f"step_{number}.ckpt", number, size=300_000)
    link(Path(sys.argv[1]) / "last.ckpt", Path(sys.argv[1]) / f"step_{number}.ckpt")
    if number > 2:
        (Path(sys.argv[1]) / f"step_{number - 2}.ckpt").unlink()
"""


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_good_one(tmp_path, kills):
    draw = random.Random(1)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, tmp_path], cwd=REPOSITORY)
        while not (tmp_path / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2 + draw.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert saved_number(tmp_path / "last.ckpt") >= 1
        for path in tmp_path.glob("step_*.ckpt"):
            assert is_intact(path), path
        for path in tmp_path.iterdir():
            path.unlink()


class TestLastCheckpoint:
    def saved(self, folder):
        return sorted(path.name for path in folder.glob("step_*.ckpt"))

    def test_keeps_the_newest_and_leads_to_it(self, tmp_path):
        keeper = LastCheckpoint(str(tmp_path), every_n_steps=2, keep=3)
        runs.trainer(9, [keeper], plugins=[DurableCheckpointIO()], enable_checkpointing=True).fit(
            runs.module(), runs.digits()
        )
        assert self.saved(tmp_path) == [f"step_{step:07d}.ckpt" for step in (6, 8, 9)]
        assert (tmp_path / "last.ckpt").resolve().name == "step_0000009.ckpt"
        assert len(list(tmp_path.glob("*.sha256"))) == 3

    def test_going_on_from_an_earlier_one_keeps_what_it_saves(self, tmp_path):
        def trained(max_steps, every_n_steps, **options):
            keeper = LastCheckpoint(str(tmp_path), every_n_steps)
            trainer = runs.trainer(max_steps, [keeper], plugins=[DurableCheckpointIO()], enable_checkpointing=True)
            trainer.fit(runs.module(), runs.digits(), weights_only=True, **options)

        trained(12, 4)
        assert self.saved(tmp_path) == ["step_0000008.ckpt", "step_0000012.ckpt"]
        written = (tmp_path / "step_0000008.ckpt").stat().st_mtime_ns
        trained(9, 4, ckpt_path=tmp_path / "step_0000008.ckpt")
        assert self.saved(tmp_path) == ["step_0000009.ckpt", "step_0000012.ckpt"]
        assert written < (tmp_path / "step_0000012.ckpt").stat().st_mtime_ns  # it was not written once more
        trained(11, 1, ckpt_path=tmp_path / "step_0000009.ckpt")
        assert self.saved(tmp_path) == ["step_0000010.ckpt", "step_0000011.ckpt"]
        assert (tmp_path / "last.ckpt").resolve().name == "step_0000011.ckpt"

    def test_a_validation_belongs_to_the_checkpoint_of_its_step(self, tmp_path):
        """Saved before it, a run that is killed during it would go on without its results."""

        class Watch(L.Callback):
            seen: ClassVar[list] = []

            def on_validation_epoch_end(self, trainer, pl_module):
                self.seen.append((trainer.global_step, [path.name for path in tmp_path.glob("step_*.ckpt")]))

        keeper = LastCheckpoint(str(tmp_path), every_n_steps=4)
        options = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True, "val_check_interval": 4}
        runs.trainer(8, [keeper, Watch()], **options).fit(runs.module(), runs.digits())
        assert Watch.seen == [(4, []), (8, ["step_0000004.ckpt"])]

    @pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 2)])
    def test_keeps_the_best_besides_and_remembers_it(self, tmp_path, mode, best):
        class Measure(L.Callback):
            values: ClassVar[dict] = {2: 5.0, 4: 1.0, 6: math.nan, 8: 3.0, 10: 2.0, 12: 2.5}

            def on_validation_epoch_end(self, trainer, pl_module):
                pl_module.log("score", self.values[trainer.global_step], logger=False)

        def trained(max_steps, **options):
            keeper = LastCheckpoint(str(tmp_path), every_n_steps=2, monitor="score", mode=mode)
            common = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True, "val_check_interval": 2}
            trainer = runs.trainer(max_steps, [keeper, Measure()], **common)
            trainer.fit(runs.module(), runs.digits(), weights_only=True, **options)

        trained(10)
        assert self.saved(tmp_path) == [f"step_{step:07d}.ckpt" for step in (best, 8, 10)]
        assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == best
        trained(12, ckpt_path=tmp_path / "step_0000010.ckpt")
        assert self.saved(tmp_path) == [f"step_{step:07d}.ckpt" for step in (best, 10, 12)]
        assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == best

    @pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"every_n_steps": 1, "keep": 1}])
    def test_refuses_values_out_of_range(self, tmp_path, options):
        with pytest.raises(ValueError, match=r"callbacks.checkpoint.every_n_steps=\d, keep=\d"):
            LastCheckpoint(str(tmp_path), **options)
