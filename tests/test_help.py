"""--help and the Tab key, which answer without torch."""

import shutil
import subprocess
import sys

import pytest

from lightning_diffusion.app import evaluate, export, predict, report, sample, summary, train
from lightning_diffusion.app.cli import CONF
from tests.command import REPOSITORY, in_process

PROGRAMS = [train, sample, evaluate, export, predict, summary, report]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_help_shows_examples_and_every_option_of_every_group(program, tmp_path):
    status, out, err = in_process(program.main, "--help", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert all(line in out for line in program.__doc__.splitlines())
    words = out.replace("*", "").replace(",", "").split()
    for group in (path.parent.name for path in CONF.glob("*/*.yaml")):
        if f"  {group} " in out:
            assert {path.stem for path in (CONF / group).glob("*.yaml")} <= set(words)
    if program is train:
        ours = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"edit"}
        assert all(f"  {group} " in out for group in ours)
        assert "cosine*," in out
    assert list(tmp_path.iterdir()) == []


def test_help_of_a_group_shows_its_files(tmp_path):
    _, out, _ = in_process(train.main, "--help", "optimizer", "lr_scheduler", cwd=tmp_path)
    assert "optimizer=adamw\n    _target_: torch.optim.AdamW" in out
    assert "lr_scheduler=warmup_cosine" in out


@pytest.mark.parametrize("words", [["--help"], ["schedule=lineer"], ["--cfg", "job"], ["-sc", "install=bash"]], ids=str)
def test_what_needs_no_torch_does_not_import_it(words, tmp_path):
    code = f"""
import sys
sys.argv[1:] = {words!r}
from src.train import main
try:
    main()
finally:
    assert "torch" not in sys.modules and "lightning" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "AssertionError" not in done.stderr, done.stderr
    assert done.returncode == (2 if "lineer" in words[0] else 0)


TAB = {
    "bash": """
eval "$(diffusion-train -sc install=bash)"
COMP_LINE="diffusion-train {word}" COMP_WORDS=(diffusion-train {word}) COMP_CWORD=1 COMP_POINT=99
hydra_bash_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "fish": 'diffusion-train -sc install=fish | source; complete -C "diffusion-train {word}"',
}


@pytest.mark.parametrize("shell", TAB)
def test_the_tab_key(shell, tmp_path, monkeypatch):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    command = tmp_path / "diffusion-train"  # as pip writes it
    command.write_text(f"#!{sys.executable}\nfrom src.train import main\nmain()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("HOME", str(tmp_path))

    def tab(word):
        done = subprocess.run([shell, "-c", TAB[shell].format(word=word)], cwd=tmp_path, capture_output=True, text=True)
        return set(done.stdout.split())

    assert tab("schedule=co") == {"schedule=constant", "schedule=cosine"}
    assert tab("trainer.dev") == {"trainer.devices="}
