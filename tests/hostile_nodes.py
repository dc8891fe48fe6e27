"""Two hundred configurations that a file may hold and that nobody may act on."""

import copy
import math

from hydra.core.utils import setup_globals
from omegaconf.basecontainer import BaseContainer

PACKAGE = "lightning_diffusion"
DENOISER = f"{PACKAGE}.diffusion.denoiser.NetworkDenoiser"
UNET = f"{PACKAGE}.networks.unet.UNet"
CREATE = "${oc.create:{_target_:sympy.sympify,a:\"__import__('os').system('touch CANARY')\"}}"
TARGETS = (
    "os.system", "os.mkdir", "os.popen", "posix.system", "subprocess.run", "subprocess.Popen", "builtins.eval",
    "builtins.exec", "builtins.open", "builtins.__import__", "shutil.rmtree", "pathlib.Path.write_text",
    "importlib.import_module", "runpy.run_path", "pickle.loads", "torch.load", "torch.hub.load",
    "torch.utils.collect_env.run", "hydra.utils.get_method", "hydra.utils.instantiate", "functools.partial",
    "webbrowser.open", "urllib.request.urlopen", "code.interact", "ctypes.CDLL", "sympy.sympify", "timeit.timeit",
    "setuptools._distutils.spawn.spawn", "torch.nn.Identity", "antigravity.webbrowser", "this.s",
    # they begin with the project's own name, or are its own in the wrong place
    *(f"{PACKAGE}.{name}" for name in (
        "app.cli.os.system", "app.cli.sys.exit", "system.files.write_text", "system.files.os.mkdir",
        "app.commands.export.main", "checkpoints.loading.write_safetensors", "checkpoints.weak_model.load_weak_model",
        "runs.pictures.write_png", "app.sweep.Sweep", "training.module.TrainingModule",
        "training.loggers.wandb.WandbLogger", "training.loggers.csv.CSVLogger",
        "training.callbacks.samples.SampleGrid", "metrics.extractors.classifier.Classifier", "data.mnist.MNIST",
    )),
    "lightning.Trainer", "lightning.pytorch.profilers.SimpleProfiler", "torch.optim.AdamW",
)  # fmt: skip
ALIKE = (  # letters of other alphabets, widths and directions; spaces, case, and other ways to spell a name
    f"{PACKAGE[:-1]}ո.networks.unet.UNet", f"{PACKAGE}.networks.unet.UΝet", UNET.replace(".", "。"),
    "ｌightning_diffusion.networks.unet.UNet", f"{UNET}\u200b", f"\u202e{UNET}", f"{UNET}\n", f" {UNET}", f"{UNET} ",
    UNET.upper(), UNET.replace(".", "/"), f"{PACKAGE}.networks..unet.UNet", f"{PACKAGE}.networks.unet:UNet", f".{UNET}",
    f"{UNET}.__init__", f"{PACKAGE}.networks.unet.torch", f"{UNET}\0", "???", "", "_target_", "${x}", PACKAGE,
    f"{PACKAGE}.", "src.networks.unet.UNet", "src.backbones.unet.UΝet", "src", "src.",
)  # fmt: skip


def at(path, value):
    """A change of a denoiser's node: puts the value at the end of a path of keys."""

    def change(node):
        *parents, last = path
        for key in parents:
            node = node[key]
        node[last] = value

    return change


def whole(value):
    """The node itself is another."""

    def change(node):
        node.clear()
        node.update(value)

    return change


def interpolations():
    """Every resolver that OmegaConf and Hydra register, where texts, numbers, nodes and targets belong."""
    setup_globals()
    arguments = {"oc.create": CREATE[2:-1].removeprefix("oc.create:"), "oc.decode": "'{_target_: os.system}'"}
    for resolver in sorted(BaseContainer._resolvers):
        text = f"${{{resolver}:{arguments.get(resolver, 'CANARY')}}}"
        for path in (["label_dropout"], ["backbone", "channels"], ["backbone", "_target_"], ["schedule"]):
            yield f"{resolver} in {'.'.join(path)}", at(path, text)
    yield "in a list", at(["backbone", "channel_mults"], [1, CREATE])
    yield "as a key", at([CREATE], 1)
    yield "deep", at(["backbone", "extra"], {"a": [{"b": [CREATE]}]})
    yield "nested", at(["label_dropout"], "${oc.${oc.env:CANARY}:x}")
    yield "relative", at(["label_dropout"], "${.backbone}")
    yield "escaped", at(["label_dropout"], "\\${oc.env:CANARY}")
    yield "half", at(["label_dropout"], "${")
    yield "within words", at(["label_dropout"], f"0.1 {CREATE} 0.1")


def calls():
    """Targets that no option of a model calls, or calls in another place."""
    for target in TARGETS:
        call = {"_target_": target, "path": "CANARY", "args": "CANARY", "command": "touch CANARY"}
        for name, change in (
            ("the denoiser", whole(call)),
            ("the network", at(["backbone"], call)),
        ):
            yield f"{target} as {name}", change
    for target in TARGETS[:12]:
        levels = [{"x": {"_target_": target, "command": "touch CANARY"}}]
        yield f"{target} in a list", at(["backbone", "levels"], levels)
    for target in ALIKE:
        yield f"{target!r}", at(["backbone", "_target_"], target)
    for target in (1, None, ["os.system"], {"_target_": "os.system"}, True, 1.5):
        yield f"{target!r} as a target", at(["backbone", "_target_"], target)


def words():
    """Hydra's own words, dunder names, long names."""
    for key, values in {
        "_partial_": (True, "true", 1, {"_target_": "os.system"}),
        "_args_": (["CANARY"], "CANARY"),
        "_recursive_": (False, True),
        "_convert_": ("all", "object"),
    }.items():
        for value in values:
            yield f"{key}={value!r}", at(["backbone", key], value)
    for key in ("__class__", "__init__", "__dict__", "__globals__", "__reduce__", "__builtins__", "self", "kwargs"):
        yield key, at(["backbone", key], {"_target_": "os.system", "command": "touch CANARY"})
    for key in ("x" * 100_000, "", "a\nb", "\x1b]0;taken over\x07", "a.b", "\udcff", 1, None, True, (1, 2)):
        yield f"the key {str(key)[:10]!r}", at(["backbone", key], 1)


def values():
    """Other types than the signature has, sizes that no machine has, and depth."""
    wrong = ([], [1], {}, {"a": 1}, "x", None, True, math.nan, -1, 10**30, "1")
    for path in (["backbone", "channels"], ["backbone", "image_size"], ["schedule", "T"]):
        for value in wrong:
            yield f"{'.'.join(path)}={value!r}", at(path, value)
    for value in ([], "x", None, 1, [{"_target_": UNET}]):
        yield f"backbone={value!r}", at(["backbone"], value)
    for key, value in {
        "channels": 2**40,
        "num_blocks": 10**12,
        "channel_mults": [10**9],
        "num_classes": 10**12,
    }.items():
        yield f"{key}={value!r}", at(["backbone", key], value)
    yield "a chain without end", at(["schedule", "T"], 10**15)
    for depth in (40, 100):
        node: dict = {}
        for _ in range(depth):
            node = {"a": node} if depth % 20 else {"a": [node]}
        yield f"{depth} deep", at(["backbone", "extra"], node)


def hostile_drawings(own):
    """(name, nodes) of how samples are drawn: calls and values that no file may give; own are those of a real run."""
    guidance = "lightning_diffusion.diffusion.guidance"
    places = {
        "sampler": lambda call: {"sampler": call},
        "the sampler's time grid": lambda call: {"sampler": {**own["sampler"], "time_grid": call}},
        "time_grid": lambda call: {"time_grid": call},
        "guidance": lambda call: {"guidance": {**call, "_partial_": True}},
        "the classifier": lambda call: {
            "guidance": {"_target_": f"{guidance}.Classifier", "_partial_": True, "classifier": call}
        },
        "a part of a chain": lambda call: {"guidance": {"_target_": f"{guidance}.chain", "_partial_": True, "x": call}},
        "the weaker model": lambda call: {
            "guidance": {"_target_": f"{guidance}.Autoguidance", "_partial_": True, "weak": call}
        },
    }
    ours = (
        "lightning_diffusion.networks.unet.UNet",
        DENOISER,
        "lightning_diffusion.diffusion.editing.inpaint.Inpaint",
        "lightning_diffusion.data.digits.Digits",
    )
    for place, nodes in places.items():
        for target in (*TARGETS, *ALIKE, *ours, 1, None, ["os.system"], {"_target_": "os.system"}):
            call = {"_target_": target, "path": "CANARY", "args": "CANARY", "command": "touch CANARY"}
            yield f"{target!r} as {place}", own | nodes(call)
    for key in ("sampler", "time_grid", "guidance"):
        for value in (None, [], {}, 1, "x", CREATE, {CREATE: 1}, [{"_target_": "os.system"}]):
            yield f"{key}={value!r}", own | {key: value}
        for name, value in {"_args_": ["CANARY"], "_recursive_": False, "__class__": 1, "denoiser": CREATE}.items():
            yield f"{key}.{name}", own | {key: {**own[key], name: value}}
    for value in (10**12, -1, 0, "x", True, math.nan, [], CREATE):
        yield f"num_steps={value!r}", own | {"sampler": {**own["sampler"], "num_steps": value}}


def hostile_nodes(base):
    """(name, node) for each; the base is a denoiser's node of a real run."""
    for make in (interpolations, calls, words, values):
        for name, change in make():
            node = copy.deepcopy(base)
            change(node)
            yield name, node
