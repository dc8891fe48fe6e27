"""Hostile configurations in every kind of file are never executed, whichever program reads them."""

import copy
import json
import os
import shutil
import socket
import threading
from types import SimpleNamespace

import pytest
import torch
import torchvision.datasets  # noqa: F401 - its import is no deed of a file
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_diffusion.app.saved_words import Word, literal
from lightning_diffusion.checkpoints.diffusers import folder as folder_of_diffusers
from lightning_diffusion.checkpoints.loading import load
from lightning_diffusion.checkpoints.model_file import read
from lightning_diffusion.configuration.calls import make
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import Targets, require_plain
from lightning_diffusion.training.durable import DurableCheckpointIO
from src.evaluate import main as evaluate
from src.export import main as export
from src.report import main as report
from src.sample import main as sample
from src.train import main as train
from tests.audit import WATCH
from tests.command import in_process
from tests.hostile_nodes import CREATE, hostile_drawings, hostile_nodes
from tests.runs import TINY

SAYING_TOO_MUCH = (
    "hydra.searchpath=[file://EVIL]", "hydra.run.dir=CANARY", "hydra.callbacks.x._target_=os.system", "trust=[os]",
    "resume=EVIL", "backbone=../../EVIL/evil", "+EVIL/evil=evil", "data@callbacks.x=evil", "schedule=linear,cosine",
    "logger.csv.path=EVIL/CANARY", "callbacks.checkpoint.directory=CANARY", "trainer.default_root_dir=EVIL/CANARY",
    "metrics.cache_dir=EVIL/CANARY", "run_dir=EVIL/CANARY",
    "+logger.x={_target_: lightning_diffusion.training.loggers.csv.CSVLogger, path: EVIL/CANARY}",
    "data=mnist", "~trainer._target_",
    "+trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler, dirpath: EVIL, filename: CANARY}",
    "callbacks={x: {_target_: lightning_diffusion.training.callbacks.samples.SampleGrid, directory: CANARY}}",
    "optimizer._target_=subprocess.Popen", "name=${oc.env:CANARY}", "name=a\nb", "=", "\udcff=1", "x" * 100_000,
    "[" * 5_000,
)  # fmt: skip
OF_THE_SAME_KINDS = (
    "+hydra.job_logging.handlers.x.filename=CANARY", "+trust=[tests]", "backbone=/EVIL/evil", "experiment=../train",
    "data=evil", "schedule.T=range(1,5)", "seed=choice(1,2)", "logger.csv.path=CANARY",
    "callbacks.samples.directory=EVIL/CANARY", "callbacks.noise_levels.path=EVIL/CANARY",
    "+callbacks.x={_target_: lightning_diffusion.training.loggers.csv.CSVLogger, path: CANARY}",
    "+logger.x._target_=lightning_diffusion.training.loggers.csv.CSVLogger", "data=image_folder", "data=cifar10",
    "callbacks.stop._target_=tests.user_package.Doubled", "a", "", "a={b:" * 2_000,
)  # fmt: skip
SHARDS = 3  # of a long list, for tests that run in parallel


@pytest.fixture(scope="module")
def server():
    """On loopback, which nobody may call."""
    called = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        done = threading.Event()

        def accept():
            while not done.is_set():
                try:
                    listening.accept()[0].close()
                    called.append(1)
                except TimeoutError:
                    pass

        thread = threading.Thread(target=accept)
        thread.start()
        yield SimpleNamespace(port=listening.getsockname()[1], called=called)
        done.set()
        thread.join()
    assert called == []


@pytest.fixture(scope="module")
def carriers(finished, tmp_path_factory):
    """A model in every kind of file that may carry a configuration."""
    folder = tmp_path_factory.mktemp("carriers")
    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    words = ["num_samples=1", "sampler.num_steps=1", f"output_dir={folder}/warm"]
    arguments = [f"ckpt_path={finished[0]}/checkpoints/last.ckpt", "output_dir=safetensors", "format=safetensors"]
    assert in_process(export, *arguments, cwd=folder)[0] == 0
    chain = copy.deepcopy(content["hyper_parameters"]["model"])
    chain["denoiser"]["schedule"] = {"_target_": "lightning_diffusion.diffusion.beta.cosine", "T": 1000}
    folder_of_diffusers.write(folder / "diffusers", make(chain, Targets()))
    for model in (f"ckpt_path={finished[0]}/checkpoints/last.ckpt", "pretrained=safetensors/denoiser.safetensors"):
        status, _, err = in_process(sample, model, *words, cwd=folder)
        assert status == 0, err
    run = folder / "run"
    shutil.copytree(finished[0], run, symlinks=True)
    assert in_process(report, f"runs={run}", cwd=folder)[0] == 0
    assert in_process(train, "resume=run", cwd=folder)[0] == 0  # everything that is imported late, is by now
    keys = ("state_dict", "hyper_parameters", "global_step", "format_version")  # what a model is made of
    parts = {key: content[key] for key in keys}
    return SimpleNamespace(folder=folder, content=parts, run=run)


def write_checkpoint(carriers, node, folder):
    known = carriers.content["hyper_parameters"]
    known = {**known, "model": {**known["model"], "denoiser": node}}
    content = {**carriers.content, "hyper_parameters": known}
    DurableCheckpointIO().save_checkpoint(content, folder / "model.ckpt")
    return folder / "model.ckpt"


def write_data(carriers, node, folder):
    """What is hostile in the denoiser's node, in that of the data."""
    known = carriers.content["hyper_parameters"]
    own, backbone = known["model"]["denoiser"], node.get("backbone")
    if isinstance(backbone, dict):
        changed = {key: value for key, value in backbone.items() if own["backbone"].get(key, "-") != value}
        changed |= {key: value for key, value in node.items() if key not in own}
        places = {"label_dropout": "seed", "schedule": "num_workers"}
        changed |= {place: node[key] for key, place in places.items() if node[key] != own[key]}
        node = {**known["data"], **changed}
    content = {**carriers.content, "hyper_parameters": {**known, "data": node}}
    DurableCheckpointIO().save_checkpoint(content, folder / "data.ckpt")
    return folder / "data.ckpt"


def with_names(node):
    """The same with keys that JSON has a word for."""
    if isinstance(node, dict):
        return {str(key): with_names(value) for key, value in node.items()}
    return [with_names(value) for value in node] if isinstance(node, (list, tuple)) else node


def write_safetensors(carriers, node, folder):
    """As the first version of the format has it."""
    source, path = carriers.folder / "safetensors" / "denoiser.safetensors", folder / "model.safetensors"
    with safe_open(source, "pt") as file:
        names = file.keys()
        tensors = {name.removeprefix("denoiser."): file.get_tensor(name) for name in names}
    header = json.dumps(with_names(node))
    save_file(tensors, path, metadata={"denoiser": header.encode(errors="replace").decode()})
    return path


def write_diffusers(carriers, node, folder):
    """The node's parts wherever a folder of diffusers has a place for them."""
    path = folder / "diffusers"
    shutil.copytree(carriers.folder / "diffusers", path, dirs_exist_ok=True)
    own = json.loads((path / "lightning_diffusion.json").read_text())
    own |= {"num_classes": node.get("backbone"), "label_dropout": node.get("label_dropout", CREATE), "_target_": CREATE}
    (path / "lightning_diffusion.json").write_text(json.dumps(with_names(own)))
    return path


WRITERS = {
    "checkpoint": write_checkpoint, "data": write_data, "safetensors": write_safetensors, "diffusers": write_diffusers,
}  # fmt: skip
PROGRAMS = {
    "sample": (sample, "ckpt_path={}", "output_dir=out", "num_samples=2", "sampler.num_steps=1"),
    "sample a pretrained": (sample, "pretrained={}", "output_dir=out", "num_samples=2", "sampler.num_steps=1"),
    "sample by a weaker": (
        sample, "ckpt_path=GOOD", "guidance=autoguidance", "guidance.weak.ckpt_path={}", "output_dir=out",
        "num_samples=2", "sampler.num_steps=1",
    ),
    "evaluate": (evaluate, "ckpt_path={}", "output_dir=out", "num_samples=10", "sampler.num_steps=1"),
    "likelihood": (evaluate, "ckpt_path={}", "metrics=likelihood", "output_dir=out", "num_images=2"),
    "export": (export, "ckpt_path={}", "output_dir=out"),
    "train on": (train, *TINY, "ckpt_path={}", "hydra.run.dir=out"),
    "train a pretrained": (train, *TINY, "pretrained={}", "hydra.run.dir=out"),
}  # fmt: skip


def check_refused(carriers, folder, program, path):
    main, *words = PROGRAMS[program]
    good = carriers.run / "checkpoints" / "last.ckpt"
    words = [word.format(path).replace("GOOD", str(good)) for word in words]
    with WATCH.nothing_happens(folder):
        status, out, err = in_process(main, *words, cwd=folder)
    assert status == 2, (out, err)
    assert len(err.splitlines()) == 1, err
    assert err.isprintable() or err.rstrip("\n").isprintable(), err
    assert len(err) < 2000
    assert not list(folder.rglob("*CANARY*"))
    assert not (folder / "out").exists()


def nodes_of(carriers, shard, shards):
    return list(hostile_nodes(carriers.content["hyper_parameters"]["denoiser"]))[shard::shards]


def test_the_bombs_work(tmp_path, monkeypatch):
    """A program that resolves and instantiates such a node runs its command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.py").write_text("import pathlib\ndef go(x): pathlib.Path(x).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = OmegaConf.create({"x": "${oc.create:{_target_:bomb.go,x:CANARY}}"})
    instantiate(OmegaConf.to_container(node, resolve=True))
    assert (tmp_path / "CANARY").exists()
    with pytest.raises(AssertionError, match="open"), WATCH.nothing_happens(tmp_path / "elsewhere"):
        (tmp_path / "CANARY").write_text("x")
    with pytest.raises(AssertionError, match=r"os\.system"), WATCH.nothing_happens(tmp_path):
        os.system("true")
    with pytest.raises(AssertionError, match="exec"), WATCH.nothing_happens(tmp_path):
        eval("1 + 1")


def test_there_are_200_of_them(carriers):
    assert len(nodes_of(carriers, 0, 1)) >= 200


def check_nothing_is_made(carriers, folder, kind, nodes):
    """By the one function that every program loads a model with."""
    for name, node in nodes:
        path = WRITERS[kind](carriers, node, folder)
        with WATCH.nothing_happens(folder), pytest.raises(ValueError, match=r"^(ckpt_path|pretrained)=") as error:
            load(path)
        told = str(error.value)
        assert "\n" not in told, name
        assert len(told) < 1000, name
        assert not list(folder.rglob("*CANARY*")), name


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_made_of_a_share_of_them(carriers, server, tmp_path, kind):
    """Another one for each kind of file: together, all of them."""
    check_nothing_is_made(carriers, tmp_path, kind, nodes_of(carriers, list(WRITERS).index(kind), len(WRITERS)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_made_of_any_of_them(carriers, server, tmp_path, kind):
    check_nothing_is_made(carriers, tmp_path, kind, nodes_of(carriers, 0, 1))


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_refuses_a_share_of_them(carriers, server, tmp_path, program):
    shard = list(PROGRAMS).index(program)
    for i, (_, node) in enumerate(nodes_of(carriers, shard, 8 * len(PROGRAMS))):
        kind = list(WRITERS)[i % 2]  # those that every program takes
        check_refused(carriers, tmp_path, program, WRITERS[kind](carriers, node, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_program_refuses_all_of_them(carriers, server, tmp_path, program, kind):
    if program in ("export", "train on") and kind in ("safetensors", "diffusers"):
        pytest.skip("it takes checkpoints")
    for _, node in nodes_of(carriers, 0, 1):
        check_refused(carriers, tmp_path, program, WRITERS[kind](carriers, node, tmp_path))


def check_not_drawn(carriers, folder, every):
    """Drawing with the nodes of a checkpoint refuses these."""
    known = carriers.content["hyper_parameters"]
    for i, (name, drawing) in enumerate(every):
        content = {**carriers.content, "hyper_parameters": {**known, **drawing}}
        DurableCheckpointIO().save_checkpoint(content, folder / "model.ckpt")
        main, *words = PROGRAMS["evaluate" if i % 4 == 3 else "sample"]
        words = [word.format(folder / "model.ckpt") for word in words if not word.startswith("sampler")]
        with WATCH.nothing_happens(folder):
            status, out, err = in_process(main, *words, cwd=folder)
        assert (status, len(err.splitlines())) == (2, 1), (name, out, err)
        assert len(err) < 2000, name
        assert not list(folder.rglob("*CANARY*"))
        assert not (folder / "out").exists()


def drawings_of(carriers):
    known = carriers.content["hyper_parameters"]
    return list(hostile_drawings({key: known[key] for key in ("sampler", "time_grid", "guidance")}))


def test_a_share_of_hostile_samplers_and_guidances_is_refused(carriers, server, tmp_path):
    check_not_drawn(carriers, tmp_path, drawings_of(carriers)[::37])


@pytest.mark.slow
def test_every_hostile_sampler_and_guidance_is_refused(carriers, server, tmp_path):
    check_not_drawn(carriers, tmp_path, drawings_of(carriers))


def words_of(node, path=""):
    """The words of a command line that say what a node does."""
    for key, value in node.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value and "_target_" not in value:
            yield from words_of(value, inner)
        else:
            yield f"++{inner}={literal(value)}"


def words_of_nodes(carriers):
    """Of each hostile node, the words that are not the run's own."""
    own = set(words_of({"denoiser": carriers.content["hyper_parameters"]["denoiser"]}))
    for _, node in nodes_of(carriers, 0, 1):
        parts = {key: value for key, value in node.items() if key in ("backbone", "schedule")}
        if words := [word for word in words_of({"denoiser": node, **parts}) if word not in own]:
            yield words


def write_words(run, words, name="digits"):
    text = yaml.safe_dump({"name": name, "overrides": [*TINY, *words]}, allow_unicode=True)
    (run / "overrides.yaml").write_bytes(text.encode(errors="surrogateescape"))


def check_not_resumed(carriers, folder, every):
    """With any of these lists of words in its overrides.yaml, a run is left as it is."""
    evil, run = folder / "evil", folder / "cwd" / "run"
    evil.mkdir()
    (evil / "evil.yaml").write_text(f"_target_: lightning_diffusion.networks.unet.UNet\nimage_size: '{CREATE}'\n")
    shutil.copytree(carriers.run, run, symlinks=True)
    for words in every:
        write_words(run, [word.replace("EVIL", str(evil)) for word in words])
        before = sorted(path for path in folder.rglob("*") if path.name != ".lock")
        with WATCH.nothing_happens(folder / "cwd"):
            status, out, err = in_process(train, "resume=run", cwd=folder / "cwd")
        assert (status, len(err.splitlines())) == (2, 1), (words, out, err)
        assert sorted(path for path in folder.rglob("*") if path.name != ".lock") == before, words


@pytest.mark.parametrize("shard", range(SHARDS))
def test_words_that_say_too_much_are_not_said_again(carriers, server, tmp_path, shard):
    check_not_resumed(carriers, tmp_path, [[word] for word in SAYING_TOO_MUCH[shard::SHARDS]])


@pytest.mark.slow
def test_nor_are_others_of_their_kinds(carriers, server, tmp_path):
    check_not_resumed(carriers, tmp_path, [[word] for word in OF_THE_SAME_KINDS])


@pytest.mark.slow
def test_no_hostile_node_is_resumed_as_words(carriers, server, tmp_path):
    check_not_resumed(carriers, tmp_path, words_of_nodes(carriers))


@pytest.mark.parametrize(
    "text",
    ["[]", "1", "{overrides: 1}", "&a [*a]", "{a: " * 3000, "\0", "- !!python/object/apply:os.system [true]"],
    ids=range(7),
)
def test_an_overrides_file_of_anything_is_one_line(carriers, tmp_path, text):
    run = tmp_path / "run"
    shutil.copytree(carriers.run, run, symlinks=True)
    (run / "overrides.yaml").write_text(text)
    with WATCH.nothing_happens(tmp_path):
        status, _, err = in_process(train, "resume=run", cwd=tmp_path)
    assert (status, len(err.splitlines())) == (2, 1), err


def test_a_report_reads_configurations_as_text(carriers, tmp_path):
    """Each hostile run is in the report, next to a good one."""
    for i, (_, node) in enumerate(nodes_of(carriers, 0, 1)):
        run = tmp_path / "runs" / str(i)
        run.mkdir(parents=True)
        for name in ("overrides.yaml", "metrics.json"):
            shutil.copy(carriers.run / name, run / name)
        try:
            text = yaml.dump({"metric": "val/loss", "denoiser": node, **node}, allow_unicode=True)
        except (RecursionError, ValueError):
            text = CREATE
        (run / "config.yaml").write_bytes(text.encode(errors="replace"))
    with WATCH.nothing_happens(tmp_path):
        status, _, err = in_process(report, "runs=runs", cwd=tmp_path)
    assert status == 0, err
    assert not list(tmp_path.rglob("*CANARY*"))


def test_a_network_larger_than_its_weights_is_not_made(carriers, tmp_path):
    """Nor is its memory allocated: the file names a network of 4 TB."""
    node = copy.deepcopy(carriers.content["hyper_parameters"]["denoiser"])
    node["backbone"] |= {"channels": 2**20, "num_blocks": 1000}
    with pytest.raises(ValueError, match="describes a network that is larger than its weights|memory"):
        load(write_checkpoint(carriers, node, tmp_path))
    for num_blocks in (1000, 10**9):
        node["backbone"] |= {"channels": 8, "num_blocks": num_blocks}
        path = write_checkpoint(carriers, node, tmp_path)
        check_refused(carriers, tmp_path, "train a pretrained", path)


def test_data_that_a_file_names_are_read_and_never_fetched(carriers, tmp_path):
    known = carriers.content["hyper_parameters"]
    for target in (
        "lightning_diffusion.data.mnist.MNIST",
        "lightning_diffusion.data.cifar10.CIFAR10",
        "lightning_diffusion.data.image_folder.ImageFolder",
        "lightning_diffusion.data.array_file.ArrayFile",
    ):
        data = {**known["data"], "_target_": target, "root": str(tmp_path / "elsewhere")}
        content = {**carriers.content, "hyper_parameters": {**known, "data": data}}
        DurableCheckpointIO().save_checkpoint(content, tmp_path / "model.ckpt")
        with WATCH.nothing_happens(tmp_path / "cwd"):
            (tmp_path / "cwd").mkdir(exist_ok=True)
            words = ["ckpt_path=../model.ckpt", "output_dir=out", "num_samples=10"]
            status, _, err = in_process(evaluate, *words, cwd=tmp_path / "cwd")
        assert (status, len(err.splitlines())) == (2, 1), err
        assert "elsewhere" in err
        assert not (tmp_path / "elsewhere").exists()


def test_plain_data_is_plain():
    require_plain({"a": [1, 1.5, "x", None, True, {"b": []}]})
    for node in ("${x}", {"${x}": 1}, {1: 1}, {"": 1}, (1,), {1}, b"x", 2**63, torch.zeros(1), {"a": object()}):
        with pytest.raises(ConfigError):
            require_plain(node)


def test_a_word_with_a_reference_is_kept_as_its_value():
    config = OmegaConf.create({"a": {"b": "it's"}, "c": "${a.b}", "d": "${a}", "e": [1, None, True]})
    assert Word("c=${a.b}").resolved(config) == "c='it\\'s'"
    assert Word(Word("d='${a}'").resolved(config).replace("d=", "+d=")).text == "+d={b:'it\\'s'}"
    assert Word("e=[1,null,true]").resolved(config) == "e=[1,null,true]"


def test_read_names_the_key(carriers, tmp_path):
    node = {**carriers.content["hyper_parameters"]["model"]["denoiser"], "label_dropout": "a"}
    with pytest.raises(ValueError, match=r"guidance.weak.ckpt_path=.*denoiser.label_dropout='a': expected a number"):
        read(write_checkpoint(carriers, node, tmp_path), "guidance.weak.ckpt_path")
