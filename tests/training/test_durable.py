"""Checkpoints that survive: kills, full disks and damaged files leave the last good one, and none is taken for good."""

import contextlib
import math
import os
import random
import shutil
import signal
import time
import zipfile
from typing import ClassVar

import lightning as L
import pytest
import torch

from lightning_diffusion.checkpoints.folder import load, newest, newest_intact, read_checkpoint
from lightning_diffusion.checkpoints.seal import END, LENGTH, is_intact, saved, seal, seal_of
from lightning_diffusion.system.files import NotWritten, link
from lightning_diffusion.training.callbacks import checkpoint
from lightning_diffusion.training.callbacks.checkpoint import LastCheckpoint
from lightning_diffusion.training.callbacks.stop import Stopped
from lightning_diffusion.training.durable import DurableCheckpointIO
from lightning_diffusion.training.loggers.csv import CSVLogger
from tests import runs
from tests.command import REPOSITORY, run, start
from tests.test_files import small_disk  # noqa: F401


def save(path, number, size=1000):
    content = {
        "state_dict": {"x": torch.full((size,), float(number))}, "hyper_parameters": {"denoiser": {}},
        "global_step": number,
    }  # fmt: skip
    DurableCheckpointIO().save_checkpoint(content, path)


def saved_number(path):
    return int(read_checkpoint(path)["state_dict"]["x"][0])


def intact(path):
    with path.open("rb") as file:
        return is_intact(file)


def test_what_is_written_is_read(tmp_path):
    save(path := tmp_path / "below" / "a.ckpt", 7)
    assert saved_number(path) == 7
    assert [path.name for path in path.parent.iterdir()] == ["a.ckpt"]
    for options in ({}, {"mmap": True}):  # torch's own readers need no help
        assert torch.load(path, weights_only=True, **options)["global_step"] == 7
    assert zipfile.ZipFile(path).comment.startswith(b"lightning-diffusion 1 counter=0000000001 step=0000000007 sha256=")


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


def test_of_all_flipped_bits_of_the_seal_none_is_taken_for_good(tmp_path):
    """Nor does any make a file newer or older than it is."""
    save(path := tmp_path / "step_7.ckpt", 7)
    whole, genuine = path.read_bytes(), seal_of(path)
    for bit in range(8 * (LENGTH + 22)):
        flipped = bytearray(whole)
        flipped[-1 - bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert not intact(path)
        assert seal_of(path) in (None, genuine)


class TestSealing:
    def test_what_other_means_have_saved_is_refused_until_it_is_sealed(self, tmp_path):
        save(path := tmp_path / "a.ckpt", 7)
        torch.save(torch.load(path, weights_only=True), path)
        with pytest.raises(
            ValueError, match=r"it has no seal; .*: python -m lightning_diffusion.checkpoints.seal .*a.ckpt"
        ):
            read_checkpoint(path)
        assert run("lightning_diffusion.checkpoints.seal", path, cwd=REPOSITORY, forked=True)[0] == 0
        assert saved_number(path) == 7
        assert seal_of(path)[:2] == (1, 7)

    def test_the_file_sealed_last_is_the_newest(self, tmp_path):
        for number in (1, 2):
            save(tmp_path / f"step_{number}.ckpt", number)
        torch.save(torch.load(tmp_path / "step_1.ckpt", weights_only=True), tmp_path / "step_1.ckpt")
        assert saved_number(newest(tmp_path)) == 2
        seal(tmp_path / "step_1.ckpt")
        assert saved_number(newest(tmp_path)) == 1

    def test_a_damaged_seal_is_replaced_and_damaged_weights_are_refused(self, tmp_path):
        save(path := tmp_path / "a.ckpt", 7)
        whole = path.read_bytes()
        path.write_bytes(whole[:-5] + b"!" + whole[-4:])
        seal(path)
        assert len(path.read_bytes()) == len(whole)
        assert saved_number(path) == 7
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(ValueError, match="its SHA-256 does not match"):
            seal(path)

    @pytest.mark.parametrize("content", [b"", b"hello", END + bytes(18)])
    def test_no_checkpoint(self, tmp_path, content):
        (tmp_path / "a.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match="a.ckpt: not a checkpoint that can be sealed"):
            seal(tmp_path / "a.ckpt")
        assert (tmp_path / "a.ckpt").read_bytes() == content


class TestReading:
    def test_what_is_loaded_is_what_was_verified(self, tmp_path, monkeypatch):
        """Another file takes its place in between."""
        save(path := tmp_path / "a.ckpt", 7)
        save(other := tmp_path / "b.ckpt", 8)
        original = torch.load

        def load_later(*arguments, **options):
            os.replace(other, path)
            return original(*arguments, **options)

        monkeypatch.setattr(torch, "load", load_later)
        assert saved_number(path) == 7

    def test_lightning_reads_no_damaged_file_and_executes_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        fitter = runs.trainer(2, plugins=[DurableCheckpointIO()])
        fitter.fit(runs.module(), runs.digits())
        fitter.save_checkpoint(path := tmp_path / "a.ckpt")

        def go_on(**options):
            again = runs.trainer(3, plugins=[DurableCheckpointIO()])
            again.fit(runs.module(), runs.digits(), ckpt_path=path, **options)
            return again.global_step

        assert go_on(weights_only=False) == 3
        whole = path.read_bytes()
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        with pytest.raises(ValueError, match="a.ckpt: damaged"):
            go_on()
        content = {"global_step": 2, "loops": Hostile(os.mkdir, str(tmp_path / "executed"))}
        DurableCheckpointIO().save_checkpoint(content, path)
        for weights_only in (None, False):
            with pytest.raises(ValueError, match="not a readable checkpoint of this project"):
                go_on(weights_only=weights_only)
        assert not (tmp_path / "executed").exists()

    def test_neither_pipe_nor_folder_blocks(self, tmp_path):
        os.mkfifo(tmp_path / "step_1.ckpt")
        (tmp_path / "step_2.ckpt").mkdir()
        with pytest.raises(ValueError, match="none of its checkpoints is intact"):
            newest_intact(tmp_path, "resume=x")
        with pytest.raises(ValueError, match="not a regular file"):
            load(tmp_path / "step_1.ckpt", "ckpt_path=x")


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


class TestWhichIsTheNewest:
    """The seal decides; neither clocks nor names."""

    @pytest.mark.parametrize("clock", [0, 4e9])
    def test_clocks(self, tmp_path, clock):
        for number in (20, 40):
            save(path := tmp_path / f"step_{number:07d}.ckpt", number)
            os.utime(path, (clock - number, clock - number) if clock else (5, 5))
        assert saved_number(newest_intact(tmp_path, "resume=x")) == 40

    def test_names(self, tmp_path):
        for number, name in ((20, "step_9.ckpt"), (40, "step_1.ckpt"), (30, "step_5.ckpt")):
            save(tmp_path / name, number)
        assert [seal.step for seal in saved(tmp_path).values()] == [30, 40, 20]

    def test_a_damaged_one_is_reported_and_passed_over(self, tmp_path, capsys):
        for number in (1, 2, 3, 4):
            save(tmp_path / f"step_{number}.ckpt", number)
        for number, where in ((2, -1), (3, 500), (4, 500)):  # the seal; the weights
            path = tmp_path / f"step_{number}.ckpt"
            whole = path.read_bytes()
            path.write_bytes(whole[:where] + bytes([whole[where] ^ 1]) + whole[where:][1:])
        assert saved_number(newest_intact(tmp_path, "resume=x")) == 1
        told = capsys.readouterr().err.splitlines()
        assert sorted(told[:-1]) == [f"resume=x: step_{number}.ckpt is damaged" for number in (2, 3, 4)]
        assert told[-1] == "resume=x: continuing from step_1.ckpt"


def test_a_full_disk_leaves_what_was_there_and_nothing_else(small_disk):  # noqa: F811
    """Ten times more than fits, on a disk of 256 KiB."""
    save(small_disk / "step_1.ckpt", 1, size=20_000)
    link(small_disk / "last.ckpt", small_disk / "step_1.ckpt")
    before = sorted(path.name for path in small_disk.iterdir())
    for number in range(2, 12):
        with pytest.raises(NotWritten, match=rf"step_{number}.ckpt: could not be written .*earlier checkpoints are "):
            save(small_disk / f"step_{number}.ckpt", number, size=200_000)
        assert saved_number(small_disk / "last.ckpt") == 1
        assert sorted(path.name for path in small_disk.iterdir()) == before


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_good_one(tmp_path, kills):
    draw = random.Random(1)
    for _ in range(kills):
        process = start("tests.training.save_forever", tmp_path, cwd=REPOSITORY, forked=True)
        while not (tmp_path / "last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2 + draw.random() / 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert saved_number(tmp_path / "last.ckpt") >= 1
        for path in tmp_path.glob("step_*.ckpt"):
            assert intact(path), path
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

    def trained(self, folder, callbacks, max_steps, every_n_steps=4, **options):
        keeper = LastCheckpoint(str(folder), every_n_steps)
        common = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True, "val_check_interval": 4}
        fitting = {name: options.pop(name) for name in ("ckpt_path",) if name in options}
        trainer = runs.trainer(max_steps, [*callbacks, keeper], **common | options)
        trainer.fit(runs.module(), runs.digits(), weights_only=True, **fitting)
        return trainer

    @pytest.mark.parametrize("max_steps", [8, 6])
    def test_a_step_is_saved_before_its_validation_and_a_run_that_was_killed_in_it_runs_it_again(
        self, tmp_path, max_steps
    ):
        """Whether it is the last step's or not; what was validated is not validated twice."""

        class Watch(L.Callback):
            def __init__(self, keep_copy=False):
                self.seen, self.keep_copy = [], keep_copy

            def on_validation_epoch_end(self, trainer, pl_module):
                self.seen.append((trainer.global_step, [path.name for path in sorted(folder.glob("step_*.ckpt"))]))
                if self.keep_copy and trainer.state.fn == "fit":
                    shutil.copytree(folder, tmp_path / f"killed_{trainer.global_step}", symlinks=True)

        folder, whole = tmp_path / "whole", Watch(keep_copy=True)
        logger = CSVLogger(str(tmp_path / "whole.csv"))
        trainer = self.trained(folder, [whole], max_steps, logger=logger)
        trainer.validate(trainer.lightning_module, runs.digits(), verbose=False)
        names = [f"step_{step:07d}.ckpt" for step in range(4, max_steps + 1, 4)]
        assert whole.seen[: len(names)] == [(4 * (i + 1), names[: i + 1]) for i in range(len(names))]
        for killed in [f"killed_{4 * (i + 1)}" for i in range(len(names))]:
            folder, again, step = tmp_path / killed, Watch(), int(killed[7:])
            rows = (tmp_path / "whole.csv").read_text().splitlines()
            cut = next(i for i, row in enumerate(rows) if row.startswith(f"{step - 1},"))
            (tmp_path / f"{killed}.csv").write_text("".join(f"{row}\n" for row in rows[:cut]))
            logger = CSVLogger(str(tmp_path / f"{killed}.csv"))
            trainer = self.trained(folder, [again], max_steps, logger=logger, ckpt_path=newest(folder))
            trainer.validate(trainer.lightning_module, runs.digits(), verbose=False)
            assert [step for step, _ in again.seen] == [step for step, _ in whole.seen][step // 4 - 1 :]
            assert (tmp_path / f"{killed}.csv").read_text() == (tmp_path / "whole.csv").read_text()
        finished, again = tmp_path / "whole", Watch()
        self.trained(finished, [again], max_steps + 1, ckpt_path=newest(finished))
        assert again.seen == []  # the last checkpoint owes none

    def test_a_run_that_is_stopped_before_its_first_step_is_resumed_as_if_it_had_never_been(self, tmp_path):
        class Stop(L.Callback):
            def on_train_start(self, trainer, pl_module):
                raise Stopped(143)

        logs = [CSVLogger(str(tmp_path / name)) for name in ("whole.csv", "run.csv")]
        options = {"log_every_n_steps": 1, "val_check_interval": 2}
        whole = self.trained(tmp_path / "whole", [], 5, logger=logs[0], **options)
        with pytest.raises(Stopped):
            self.trained(tmp_path / "run", [Stop()], 5, logger=logs[1], **options)
        assert self.saved(tmp_path / "run") == ["step_0000000.ckpt"]
        again = self.trained(tmp_path / "run", [], 5, logger=logs[1], ckpt_path=newest(tmp_path / "run"), **options)
        for name, value in whole.lightning_module.state_dict().items():
            assert torch.equal(value, again.lightning_module.state_dict()[name]), name
        assert (tmp_path / "run.csv").read_text() == (tmp_path / "whole.csv").read_text()

    def test_the_last_step_is_saved_before_pictures_are_made_of_it(self, tmp_path):
        """In either order of the trainer's callbacks."""

        class Picture(L.Callback):
            seen: ClassVar[list] = []

            def on_train_batch_start(self, trainer, *args):
                if trainer.global_step == 4:
                    self.on_train_end(trainer)

            def on_train_end(self, trainer, *args):
                path = tmp_path / f"step_{trainer.global_step:07d}.ckpt"
                self.seen.append(torch.load(path, weights_only=True)["global_step"])

        self.trained(tmp_path, [Picture()], 6, val_check_interval=1000)
        assert Picture.seen == [4, 6]

    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_the_first_one_is_saved_within_a_minute_and_leads_to_the_same_end(self, tmp_path, monkeypatch, accumulated):
        class Slow(L.Callback):
            """Ten seconds a batch."""

            def on_train_batch_end(self, *args):
                clock.now += 10 / accumulated

        class Clock:
            now = 100.0

            def monotonic(self):
                return self.now

        clock = Clock()
        monkeypatch.setattr(checkpoint, "time", clock)
        options = {"val_check_interval": 1000, "accumulate_grad_batches": accumulated}
        whole = self.trained(tmp_path / "whole", [Slow()], 9, every_n_steps=1000, **options)
        assert self.saved(tmp_path / "whole") == ["step_0000004.ckpt", "step_0000009.ckpt"]
        first = tmp_path / "whole" / "step_0000004.ckpt"
        again = self.trained(tmp_path / "again", [Slow()], 9, 1000, ckpt_path=first, **options)
        for name, value in whole.lightning_module.state_dict().items():
            assert torch.equal(value, again.lightning_module.state_dict()[name]), name

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

    @pytest.mark.parametrize("clock", [None, 0, 4e9])
    def test_what_is_saved_is_never_pruned_whatever_the_clock_says(self, tmp_path, clock):
        """Two that are kept have times of a clock that was corrected since."""
        for step in (4, 8, 12):
            keeper = LastCheckpoint(str(tmp_path), every_n_steps=4)
            trainer = runs.trainer(step, [keeper], plugins=[DurableCheckpointIO()], enable_checkpointing=True)
            trainer.fit(runs.module(), runs.digits(), weights_only=True, ckpt_path=newest(tmp_path))
            for path in tmp_path.glob("step_*.ckpt") if clock is not None else ():
                os.utime(path, (clock, clock))
        assert self.saved(tmp_path) == ["step_0000008.ckpt", "step_0000012.ckpt"]
        assert (tmp_path / "last.ckpt").resolve().name == "step_0000012.ckpt"

    def test_a_file_without_a_seal_is_neither_counted_nor_removed(self, tmp_path):
        (tmp_path / "step_mine.ckpt").write_text("x")
        keeper = LastCheckpoint(str(tmp_path), every_n_steps=1)
        runs.trainer(4, [keeper], plugins=[DurableCheckpointIO()], enable_checkpointing=True).fit(
            runs.module(), runs.digits()
        )
        assert self.saved(tmp_path) == ["step_0000003.ckpt", "step_0000004.ckpt", "step_mine.ckpt"]

    @pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 6, 7, 8])
    @pytest.mark.parametrize("place", ["link", "prune"])
    def test_the_best_survives_a_kill_at_any_link(self, tmp_path, monkeypatch, place, calls):
        """The run is best at step 4, second best at step 2. If it is killed in between, it resumes to the same end."""
        values = {2: 2.0, 4: 1.0, 6: 3.0, 8: 4.0}

        class Measure(L.Callback):
            def on_validation_epoch_end(self, trainer, pl_module):
                pl_module.log("score", values[trainer.global_step], logger=False)

        def train():
            keeper = LastCheckpoint(str(tmp_path), every_n_steps=2, monitor="score")
            common = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True, "val_check_interval": 2}
            trainer = runs.trainer(8, [keeper, Measure()], limit_val_batches=1, **common)
            trainer.fit(runs.module(), runs.digits(), ckpt_path=newest(tmp_path), weights_only=True)

        class Killed(BaseException):
            pass

        countdown = iter(range(calls))

        def killed(original):
            def call(*arguments):
                if next(countdown, None) is None:
                    raise Killed
                return original(*arguments)

            return call

        with monkeypatch.context() as patch:
            if place == "link":
                patch.setattr(checkpoint, "link", killed(checkpoint.link))
            else:
                patch.setattr(LastCheckpoint, "_prune", killed(LastCheckpoint._prune))
            with contextlib.suppress(Killed):
                train()
        train()
        assert self.saved(tmp_path) == [f"step_{step:07d}.ckpt" for step in (4, 6, 8)]
        assert (tmp_path / "best.ckpt").resolve().name == "step_0000004.ckpt"

    def test_going_back_behind_the_best_leads_to_the_best_of_what_came_before(self, tmp_path):
        """The file of the former best is overwritten by a step that is not the best."""

        def train(max_steps, values, **options):
            class Measure(L.Callback):
                def on_validation_epoch_end(self, trainer, pl_module):
                    pl_module.log("score", values[trainer.global_step], logger=False)

            keeper = LastCheckpoint(str(tmp_path), every_n_steps=2, keep=9, monitor="score")
            common = {"plugins": [DurableCheckpointIO()], "enable_checkpointing": True, "val_check_interval": 2}
            trainer = runs.trainer(max_steps, [keeper, Measure()], **common)
            trainer.fit(runs.module(), runs.digits(), weights_only=True, **options)

        train(6, {2: 5.0, 4: 1.0, 6: 2.0})
        assert (tmp_path / "best.ckpt").resolve().name == "step_0000004.ckpt"
        train(8, {4: 9.0, 6: 3.0, 8: 4.0}, ckpt_path=tmp_path / "step_0000002.ckpt")
        assert (tmp_path / "best.ckpt").resolve().name == "step_0000006.ckpt"

    @pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"every_n_steps": 1, "keep": 1}])
    def test_refuses_values_out_of_range(self, tmp_path, options):
        with pytest.raises(ValueError, match=r"callbacks.checkpoint.every_n_steps=\d, keep=\d"):
            LastCheckpoint(str(tmp_path), **options)
