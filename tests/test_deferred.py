"""The imports of a command before its first step; deferred modules are complete when they are used."""

import subprocess
import sys

DEFER = (
    "from lightning_diffusion.system.lazy_import import TORCHMETRICS, defer; "
    "defer('torchmetrics', TORCHMETRICS); import sys, lightning; "
)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_lightning_is_imported_without_slow_modules_and_torchmetrics_is_complete_when_used():
    """scipy takes two seconds to import, torchvision half a second, scikit-learn one."""
    heavy = ("scipy", "torchvision", "sklearn", "pandas")
    assert python(
        f"{DEFER}import lightning_diffusion.app.commands.train, lightning_diffusion.data.digits as d; d.read_digits(); "
        f"print([name for name in {heavy} if name in sys.modules]); "
        "from torchmetrics import Metric; from torchmetrics.image.fid import FrechetInceptionDistance; "
        "import torchmetrics, torchmetrics.metric; mean = torchmetrics.MeanMetric(); mean.update([1.0, 3.0]); "
        "assert torchmetrics.Metric is Metric is torchmetrics.metric.Metric; "
        "assert isinstance(mean, Metric) and issubclass(FrechetInceptionDistance, Metric); "
        "print(float(mean.compute()), torchmetrics.__version__ > '1', torchmetrics.functional.accuracy.__name__)"
    ).splitlines() == ["[]", "2.0 True accuracy"]  # fmt: skip


def test_what_is_not_installed_or_imported_already_is_left_alone():
    assert python(
        "import json; from lightning_diffusion.system.lazy_import import defer; "
        "defer('no_such_package', {}); defer('json', {}); "
        "import json as same; import sys; print('no_such_package' in sys.modules, json is same)"
    ) == "False True"  # fmt: skip
