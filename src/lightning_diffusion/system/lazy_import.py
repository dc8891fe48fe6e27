"""Packages whose __init__ imports far more than is used here, put off until somebody asks for the rest."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

# Lightning asks for these two alone; the package's __init__ would import scipy.signal, torchvision and every metric.
# `torchmetrics.metric` cannot come first: it imports the utilities, which import it.
TORCHMETRICS = {"Metric": "torchmetrics.utilities.checks", "MetricCollection": "torchmetrics.collections"}


class Deferred(ModuleType):
    """A package that hands out some names from its submodules and runs its __init__ for any other."""

    _names: Mapping[str, str]
    _whole = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._whole:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name == "_logger":
            return logging.getLogger(self.__name__)
        if name in self._names:
            return getattr(importlib.import_module(self._names[name]), name)
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self._whole = True
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(package: str, names: Mapping[str, str]) -> None:
    """Makes `import package` cheap for the rest of the process, unless it has been imported or is not there.

    Args:
        names: of the package -> the submodules that define them.
    """
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = Deferred
    vars(module).update(_names=names, __version__=version(package))
    sys.modules[package] = module
