import functools
import gc
import importlib.metadata
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: no threads in it or in the processes it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ["PYTHONPATH"] = "{0}:{0}/src".format(Path(__file__).parent.parent)  # for every process that a test starts

from lightning_diffusion.system.lazy_import import TORCHMETRICS, defer

defer("torchmetrics", TORCHMETRICS)  # as the programs do; a test that needs the rest of it imports that

from src.train import main as train  # noqa: E402
from tests.command import in_process  # noqa: E402
from tests.forked import popen  # noqa: E402
from tests.once import once  # noqa: E402

LONGEST = (  # they wait for processes and train in them; started first, they let all workers end at the same time
    "tests/training/test_wandb.py", "tests/test_wheel.py", "tests/test_sweep.py",
    "tests/training/test_scores.py", "tests/test_api.py", "tests/test_hardware.py", "tests/test_signals.py",
    "tests/test_deferred.py", "tests/metrics/test_extractors.py",
)  # fmt: skip
NOTEBOOKS = "notebooks/"  # half a minute and two minutes; tests/test_notebooks.py runs them in fewer steps


@pytest.hookimpl(tryfirst=True)  # before pytest selects by the marks
def pytest_collection_modifyitems(items):
    """Mark the notebooks as slow, and put the longest files first, so that idle workers have short tests left to take
    over."""
    for item in items:
        if item.nodeid.startswith(NOTEBOOKS):
            item.add_marker(pytest.mark.slow)
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(LONGEST)))


def pytest_collection_finish():
    """Exempt the half million objects that the imports leave behind from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def composed_once():
    """Compose each choice of options once: a session has a thousand command lines, and few choices."""
    with once():
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """A cache of extractors, references and floors for this session and the processes that it starts."""
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["LIGHTNING_DIFFUSION_CACHE"] = folder
    yield folder
    del os.environ["LIGHTNING_DIFFUSION_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def unhurried():
    """Turn off progress lines. On a busy machine, any step can take long enough to print one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_diffusion.system.progress.QUIET", 3600.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Skip os.fsync, which only a power cut can tell apart. The tests of the order of syncs replace it themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def plugins_once():
    """Read the metadata of the installed packages once instead of for every Trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "entry_points", functools.cache(importlib.metadata.entry_points))
        yield


@pytest.fixture
def forked_jobs(monkeypatch):
    """Fork each process that a program starts, without the seconds of imports. Slow tests start real ones."""
    forking = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr("lightning_diffusion.runs.job.subprocess", forking)


@pytest.fixture
def unarranged(monkeypatch):
    """Draw figures without matplotlib's search for a layout, which takes nearly half of a picture's time."""
    monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: (its folder, its standard output)."""
    from tests.runs import TINY  # here, because it imports Lightning, which xdist's controller does not need

    folder = tmp_path_factory.mktemp("finished")
    options = ["schedule.T=100", "trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5"]
    status, out, err = in_process(train, *TINY, *options, cwd=folder)
    assert status == 0, err
    (run_dir,) = (folder / "runs" / "digits").iterdir()
    return run_dir, out
