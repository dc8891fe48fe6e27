"""Freed memory, seen from the outside."""

import platform
import subprocess
import sys

import pytest

from src.summary import main as summary
from tests.command import in_process

FAULTS = """
import resource, sys
import torch
from src.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(24):
    if i == 16:  # by then the holes have the right size
        before = faults()
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_freed_memory_is_used_again():
    def pages(how):
        run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert pages("keep") < 1000 < pages("hand back")


def test_programs_ask_for_it_once_their_words_compose(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("src.cli.keep_freed_memory", lambda: asked.append(True))
    in_process(summary, "backbone=none_such", cwd=tmp_path)
    assert not asked
    in_process(summary, "backbone=unet", cwd=tmp_path)
    assert asked == [True]
