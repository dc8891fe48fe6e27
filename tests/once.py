"""Caches for Hydra: a test process parses and composes the same few files and words a thousand times.

Only results that depend on nothing but conf/ and the words are cached, here and in forked processes. Command lines
that add a folder, and processes that tests start anew, compose as for users. tests/test_once.py compares cached and
uncached results.
"""

import contextlib
import copy
import functools
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import yaml
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, base, grammar_parser

from lightning_diffusion.configuration.trusted_targets import CONF

SOURCES = {("file", str(CONF)), ("pkg", "hydra.conf"), ("structured", "")}
LIBRARIES = {  # the functions that the caches replace
    (OmegaConf, "load"): OmegaConf.__dict__["load"],
    (yaml, "safe_load"): yaml.safe_load,
    (base, "parse"): grammar_parser.parse,
    (OverridesParser, "parse_rule"): OverridesParser.parse_rule,
    (CachingConfigRepository, "__init__"): CachingConfigRepository.__init__,
    (defaults_list, "_create_interpolation_map"): defaults_list._create_interpolation_map,
    (config_loader_impl, "create_defaults_list"): config_loader_impl.create_defaults_list,
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"): ConfigLoaderImpl._compose_config_from_defaults_list,
}
_load, _safe_load, _parse, _parse_rule, _, _interpolation_map, _create, _compose = LIBRARIES.values()


@functools.lru_cache(512)
def _parsed_config(text):
    return OmegaConf.to_container(_load.__func__(io.StringIO(text)))


def load(file):
    return OmegaConf.create(_parsed_config(file.read())) if hasattr(file, "read") else _load.__func__(file)


@functools.lru_cache(512)
def _parsed_yaml(text):
    return _safe_load(text)


def safe_load(stream):
    """Parse each text once. The programs read the default options this way before Hydra does."""
    return copy.deepcopy(_parsed_yaml(stream)) if isinstance(stream, str) else _safe_load(stream)


@functools.cache
def _parsed_word(word, rule):
    return _parse_rule(OverridesParser.create(), word, rule)


def parse_rule(self, word, rule):
    """Parse each word of the command line once, except functions and sweeps, whose values can be random."""
    if "(" in word or "," in word:
        return _parse_rule(self, word, rule)
    return copy.deepcopy(_parsed_word(word, rule))


def share_repository(self, delegate):
    """Copy the repository shallowly. Hydra copies all stored dataclasses, but replaces only the list of sources."""
    self.delegate, self.cache = copy.copy(delegate), {}


def interpolation_map(overrides, defaults, self_added):
    """Return the choices for interpolations in a defaults list, or None if it has none. Hydra always builds them."""
    if any(not default.is_self() and default.is_interpolation() for default in defaults):
        return _interpolation_map(overrides, defaults, self_added)
    return None


def _choices(repo, config_name, overrides, **options):
    """Return the key of a defaults list and its composition, or None if folders other than conf/ are searched."""
    sources = [(source.scheme(), source.path, source.provider) for source in repo.get_sources()]
    if not {source[:2] for source in sources} <= SOURCES:
        return None
    state = (overrides.override_choices, overrides.append_group_defaults, overrides.deletions)
    return repr((sources, config_name, options, state))


_lists: dict[str, Any] = {}
_configs: dict[str, Any] = {}


def create_defaults_list(repo, config_name, overrides_list, **options):
    """Create the defaults list once for each choice of options."""
    overrides = defaults_list.Overrides(repo=repo, overrides_list=overrides_list)
    repo.choices = _choices(repo, config_name, overrides, **options)
    if repo.choices not in _lists:
        created = _create(repo=repo, config_name=config_name, overrides_list=overrides_list, **options)
        if repo.choices is None:
            return created
        _lists[repo.choices] = created
    kept = _lists[repo.choices]
    overrides.known_choices = dict(kept.overrides.known_choices)
    return defaults_list.DefaultsList(kept.defaults, kept.defaults_tree, overrides.config_overrides, overrides)


def compose(self, defaults, repo):
    """Compose the configuration, before single values are overridden, once for each choice of options."""
    if repo.choices is None:
        return _compose(self, defaults=defaults, repo=repo)
    if repo.choices not in _configs:
        _configs[repo.choices] = _compose(self, defaults=defaults, repo=repo)
    return copy.deepcopy(_configs[repo.choices])


ONCE = (
    staticmethod(load), safe_load, functools.lru_cache(512)(_parse), parse_rule, share_repository,
    interpolation_map, create_defaults_list, compose,
)  # fmt: skip


@contextlib.contextmanager
def _patched(functions) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for (owner, name), function in zip(LIBRARIES, functions, strict=True):
            stack.enter_context(mock.patch.object(owner, name, function))
        yield


def once():
    return _patched(ONCE)


def each_time():
    return _patched(LIBRARIES.values())
