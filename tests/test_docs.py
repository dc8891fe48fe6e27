"""The documentation shows what the code does."""

import re
import shlex
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from hydra.errors import HydraException

from lightning_diffusion.app.cli import CONF
from lightning_diffusion.diffusion import beta as schedules
from lightning_diffusion.diffusion.analytic import Gaussian
from lightning_diffusion.diffusion.samplers.ddim import DDIM
from lightning_diffusion.diffusion.time_grid import Trailing

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *GUIDES]
GROUPS = "|".join(sorted(path.name for path in CONF.iterdir() if path.is_dir()))
INVENTED = {"mine", "stripes"}  # options that a page tells the reader to write
PROGRAMS = {"summary": "train"}  # where the configuration has another name than the program


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """(configuration, *overrides) of each complete command in the page's bash blocks; of a sweep, its first job."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").replace("…", "PATH").splitlines():
            words = shlex.split(line.split(" && ")[0], comments=True)
            if words[:2] != ["python", "-m"] or not words[2].startswith("src."):
                continue
            program = words[2].removeprefix("src.")
            arguments = [first_of(word) for word in words[3:] if word != "-m"]
            if not any(word.startswith(("-", "resume=")) for word in arguments):
                yield PROGRAMS.get(program, program), *arguments


def first_of(word):
    """`key=a,b` and `key=interval(a,b)` with the first value only; `key=[a,b]` as it is."""
    return re.sub(r"=(?:interval\()?([^\[({,]+),.*", r"=\1", word)


def test_the_sampler_of_the_extension_guide_works_and_equals_ddim(tmp_path):
    """Ref: DDIM §4.3: DDIM(0) is Euler's method on the probability-flow ODE in σ/α."""
    text = (ROOT / "docs" / "extending.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    denoiser = Gaussian(schedules.cosine(), torch.full((4,), 0.3), 0.2 * torch.eye(4))
    arguments = (denoiser, range(4), (1, 2, 2), 0)
    euler, ddim = scope["Euler"](Trailing(), 20).sample(*arguments), DDIM(Trailing(), 20).sample(*arguments)
    torch.testing.assert_close(euler, ddim, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_names_only_files_headings_and_options_that_exist(page):
    text = page.read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for group, options in re.findall(rf"(?<![\w.-])({GROUPS})=(\w[\w,]*)", text):
        for option in set(options.strip(",").split(",")) - INVENTED:
            assert (CONF / group / f"{option}.yaml").exists(), f"{group}={option}"
    for module in re.findall(r"python -m ((?:src|benchmarks)(?:\.\w+)+)", text):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").exists(), module


def check_commands(found):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for program, *words in found:
            try:
                hydra.compose(program, overrides=words)
            except HydraException as error:
                pytest.fail(f"src.{program} {' '.join(words)}: {error}")


def test_the_commands_of_the_readme_compose():
    found = list(commands(ROOT / "README.md"))
    assert ("train",) in found
    assert ("train", "schedule=linear", "schedule.T=100") in found  # the first job of a sweep
    check_commands(found)


@pytest.mark.slow
def test_the_commands_of_the_other_pages_compose():
    found = {command for page in PAGES[1:] for command in commands(page)} - set(commands(ROOT / "README.md"))
    assert {command[0] for command in found} == {"train", "sample", "evaluate", "export", "predict", "report"}
    check_commands(found)


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_the_title_of_a_page_is_the_question_that_it_answers(page):
    assert re.fullmatch(r"# [A-Z][^?]+\?", page.read_text().splitlines()[0])


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def test_the_sweep_that_wandb_leads_is_the_preset():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    theirs = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    preset = yaml.safe_load((ROOT / "conf" / "sweep" / "T_and_beta.yaml").read_text())
    values = {key: ",".join(map(str, node["values"])) for key, node in theirs["parameters"].items()}
    assert values == preset["hydra"]["sweeper"]["params"]
    assert theirs["command"][:3] == ["python", "-m", "${program}"]
    assert (theirs["program"], theirs["metric"]["name"]) == ("src.train", "val/bits_per_dim")
