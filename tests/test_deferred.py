"""The imports of a command before its first step; deferred modules are complete when they are used."""

import subprocess
import sys

from tests.command import REPOSITORY, run

HEAVY = ("scipy", "torchvision", "sklearn", "pandas")


def test_lightning_is_imported_without_slow_modules_and_torchmetrics_is_complete_when_used():
    """scipy takes two seconds to import, torchvision half a second, scikit-learn one.

    The server of tests.forked imports the program's modules as the program does.
    """
    status, out, err = run("tests.test_deferred", cwd=REPOSITORY, forked=True)
    assert status == 0, err
    assert out.splitlines() == ["True []", "2.0 True accuracy"]


def test_what_is_not_installed_or_imported_already_is_left_alone():
    code = (
        "import json; from lightning_diffusion.system.lazy_import import defer; "
        "defer('no_such_package', {}); defer('json', {}); "
        "import json as same; import sys; print('no_such_package' in sys.modules, json is same)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False True"


def _use_torchmetrics():
    from lightning_diffusion.data.digits import read_digits

    read_digits()
    program = "lightning_diffusion.app.commands.train" in sys.modules and "lightning" in sys.modules
    print(program, [name for name in HEAVY if name in sys.modules])
    import torchmetrics
    import torchmetrics.metric
    from torchmetrics import Metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    mean = torchmetrics.MeanMetric()
    mean.update([1.0, 3.0])
    assert torchmetrics.Metric is Metric is torchmetrics.metric.Metric
    assert isinstance(mean, Metric)
    assert issubclass(FrechetInceptionDistance, Metric)
    print(float(mean.compute()), torchmetrics.__version__ > "1", torchmetrics.functional.accuracy.__name__)


if __name__ == "__main__":
    _use_torchmetrics()
