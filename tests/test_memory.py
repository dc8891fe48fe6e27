"""Reuse of freed memory, measured from outside."""

import platform
import subprocess
import sys

import pytest

from src.summary import main as summary
from tests.command import in_process

FAULTS = """
import resource
import torch
from lightning_diffusion.system.memory import keep_freed_memory

def pages(warm_up):
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(warm_up + 4):
        if i == warm_up:
            before = faults()
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return faults() - before

handed_back = pages(warm_up=1)
keep_freed_memory()
print(handed_back, pages(warm_up=16))  # by then the holes have the right size
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_freed_memory_is_used_again():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    handed_back, kept = map(int, run.stdout.split())
    assert kept < 1000 < handed_back


def test_programs_ask_for_it_once_their_words_compose(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lightning_diffusion.app.cli.keep_freed_memory", lambda: asked.append(True))
    in_process(summary, "backbone=none_such", cwd=tmp_path)
    assert not asked
    in_process(summary, "backbone=unet", cwd=tmp_path)
    assert asked == [True]
