"""Deferred import of packages whose __init__ imports far more than is used here."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from types import ModuleType
from typing import Any

# Lightning needs only these two; the package's __init__ would import scipy.signal, torchvision and every metric.
# `torchmetrics.metric` cannot be imported first: it imports the utilities, which import it.
TORCHMETRICS = {"Metric": "torchmetrics.utilities.checks", "MetricCollection": "torchmetrics.collections"}


class DeferredModule(ModuleType):
    """A package that takes some names from its submodules, and runs its __init__ for any other name."""

    _names: Mapping[str, str]
    _is_initialized = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._is_initialized:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name == "_logger":
            return logging.getLogger(self.__name__)
        if name in self._names:
            return getattr(importlib.import_module(self._names[name]), name)
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self._is_initialized = True
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer(package: str, names: Mapping[str, str]) -> None:
    """Makes `import package` cheap in this process, unless the package is imported already or not installed.

    Args:
        names: name in the package -> submodule that defines it.
    """
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = DeferredModule
    vars(module).update(_names=names, __version__=version(package))
    sys.modules[package] = module
