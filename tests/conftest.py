import functools
import gc
import importlib.metadata
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: no threads within, nor in what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ["PYTHONPATH"] = "{0}:{0}/src".format(Path(__file__).parent.parent)  # of every process that a test starts

from src.train import main as train
from tests.command import in_process
from tests.once import once

LONGEST = (  # wait for processes, and train in them: first, so that all workers end at the same time
    "notebooks/lecture.ipynb", "tests/training/test_wandb.py", "tests/test_wheel.py", "tests/test_sweep.py",
    "tests/training/test_scores.py", "tests/test_api.py", "tests/test_hardware.py", "tests/test_signals.py",
    "tests/test_deferred.py", "tests/metrics/test_extractors.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first; those who have nothing left take the others' short tests."""
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(LONGEST)))


def pytest_collection_finish():
    """Spares the garbage collector the half million objects that the imports have left for good."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """The same few yaml files and words make up a thousand command lines of a session."""
    with once():
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """Extractors, references and floors of this session alone; also of the programs that tests start."""
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["LIGHTNING_DIFFUSION_CACHE"] = folder
    yield folder
    del os.environ["LIGHTNING_DIFFUSION_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def unhurried():
    """On a busy machine anything may take long enough for a line that tells how far it is: none among the outputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_diffusion.system.progress.QUIET", 3600.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """No test cuts the power. What is written waits for no disk, but where tests.test_files counts on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def plugins_once():
    """Every Trainer looks for plug-ins in the metadata of all that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", functools.cache(importlib.metadata.entry_points))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: (its folder, its standard output)."""
    from tests.runs import TINY  # imports Lightning, which xdist's own process has no use for

    folder = tmp_path_factory.mktemp("finished")
    options = ["schedule.T=100", "trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5"]
    status, out, err = in_process(train, *TINY, *options, cwd=folder)
    assert status == 0, err
    (run_dir,) = (folder / "runs" / "digits").iterdir()
    return run_dir, out
