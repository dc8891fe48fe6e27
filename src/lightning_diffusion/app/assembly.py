"""The parts of a training run, made from a configuration and checked against each other."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_diffusion.app.cli import config_errors, one_line
from lightning_diffusion.app.resume import typed_keys
from lightning_diffusion.checkpoints.content import check_resumable
from lightning_diffusion.checkpoints.folder import locate, read_checkpoint
from lightning_diffusion.checkpoints.format import IMAGES, drawn_images
from lightning_diffusion.checkpoints.loading import Pretrained, adopt, load_network, load_weights
from lightning_diffusion.checkpoints.model_file import of_checkpoint
from lightning_diffusion.checkpoints.network_size import TOO_LARGE, no_larger_than, no_larger_than_memory
from lightning_diffusion.codecs.image_size import simplest
from lightning_diffusion.configuration.arguments import Node, Nodes, Record, Text, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.configuration.trusted_targets import CONF, require_plain
from lightning_diffusion.data.module import AUTO, ImageDataModule
from lightning_diffusion.metrics import instances, segmentation
from lightning_diffusion.models.contracts import GRAPHS, Compile, Generator, Likelihood, Model, Objective, Predictor
from lightning_diffusion.runs.comparable import BITS
from lightning_diffusion.training.callbacks.checkpoint import LastCheckpoint
from lightning_diffusion.training.callbacks.lookup import callbacks_of
from lightning_diffusion.training.callbacks.scores import SampleScores
from lightning_diffusion.training.devices import check_trainer
from lightning_diffusion.training.durable import DurableCheckpointIO
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.precision import TrueBFloat16


@dataclass(frozen=True)
class Arguments:
    """The keys of conf/train.yaml. `nodes` also holds the keys that a family of models adds."""

    name: Text
    seed: int
    metric: str
    group: Text | None
    tags: list[Text]
    trust: list[str]
    resume: object
    ckpt_path: Text | None
    pretrained: Text | None
    compile: Compile
    run_dir: Text
    print_config: bool
    data: Node[ImageDataModule]
    model: Node[Model]
    objective: Node[Objective]
    module: Node[TrainingModule]
    metrics: Node[object] | None  # for callbacks=scores
    optimizer: Node[Callable[..., Optimizer]]
    lr_scheduler: Node[Callable[..., LRScheduler]]
    trainer: Node[L.Trainer]
    callbacks: Node[dict[str, L.Callback | None]]
    logger: Node[dict[str, Logger | None]]
    nodes: Nodes
    record: Record  # written to config.yaml and the checkpoints

    def from_checkpoint(self, path: Path) -> "Arguments":
        """The arguments with this checkpoint to resume from."""
        return replace(self, ckpt_path=str(path), record=self.record | {"ckpt_path": str(path)})


class Parts(NamedTuple):
    """The parts of a run."""

    arguments: Arguments
    trainer: L.Trainer
    module: TrainingModule
    datamodule: ImageDataModule


def assemble(config: DictConfig) -> Parts:
    """Build and check the parts. Only a checkpoint is read, and the data to count their classes; nothing is written."""
    count_classes(config)
    pretrained = adopt(config, groups()) if config.get("pretrained") is not None else None
    arguments = parse(config, Arguments, groups())
    try:
        require_plain(arguments.record)
    except ConfigError as error:
        raise ConfigError(f"config: {error}; its checkpoints could not be loaded again") from error
    L.seed_everything(arguments.seed, verbose=False)
    datamodule = arguments.data.make()
    with no_larger_than_memory() if pretrained is None or pretrained.kind else _no_larger_than(pretrained):
        module = arguments.module.make()
    if pretrained is not None:
        start_from(pretrained, module)
    datamodule.condition_source = module.model.condition_source
    trainer = build_trainer(arguments.trainer, arguments.callbacks, arguments.logger)
    parts = Parts(arguments, trainer, module, datamodule)
    optimizer = check_together(parts)
    return parts if arguments.ckpt_path is None else parts._replace(arguments=resumable(arguments, module, optimizer))


def _no_larger_than(pretrained: Pretrained) -> AbstractContextManager[None]:
    return no_larger_than(pretrained.weights, f"{pretrained.source}: its configuration {TOO_LARGE}")


def start_from(pretrained: Pretrained, module: TrainingModule) -> None:
    """Load pretrained weights into the model and its average. Raise ValueError if they do not fit."""
    for model in (module.model, module.ema.model):
        if pretrained.kind is None:
            load_weights(model, pretrained.weights, pretrained.source)
        else:
            others = load_network(model, pretrained)
    if pretrained.kind is not None:
        _print_start(pretrained, len(module.model.network.state_dict()), others)


@rank_zero_only
def _print_start(pretrained: Pretrained, count: int, others: list[str]) -> None:
    listed = f"; not {', '.join(others[:4])}{', …' if len(others) > 4 else ''}" if others else ""
    print(f"{pretrained.source}: {count - len(others)} of the network's {count} tensors are its weights{listed}")


def groups() -> list[str]:
    """The groups of the configuration. An option of one can be chosen even if no part of the run uses it."""
    if not GlobalHydra.instance().is_initialized():
        return [path.name for path in CONF.iterdir() if path.is_dir()]
    return [str(group) for group in GlobalHydra.instance().config_loader().list_groups("")]


def build_trainer(
    trainer: Node[L.Trainer], callbacks: Node[dict[str, L.Callback | None]], loggers: Node[dict[str, Logger | None]]
) -> L.Trainer:
    """Lightning's trainer, with the project's checkpoint writer and bfloat16 precision."""
    device_type = check_trainer(trainer.node)
    parts: dict[str, Any] = {
        "callbacks": [callback for callback in callbacks.make().values() if callback is not None],
        "logger": [logger for logger in loggers.make().values() if logger is not None],
        "plugins": [DurableCheckpointIO()],
    }
    if trainer.node["precision"] == TrueBFloat16.precision:
        parts["plugins"].append(TrueBFloat16(device_type))
        parts["precision"] = None
    with config_errors("trainer"):
        return trainer.make(**parts)


def check_together(parts: Parts) -> Optimizer:
    """Check the parts against each other and return the optimizer.

    Raises:
        ConfigError, ValueError: two parts contradict each other.
    """
    arguments, trainer, module, datamodule = parts
    datamodule.check_devices(trainer.world_size)
    if trainer.num_nodes > 1 and not ({"MASTER_ADDR", "SLURM_JOB_ID"} & os.environ.keys()):
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes}: the addresses of the other nodes are unknown; start the run on "
            "each node with torchrun or srun (docs/hardware.md), or choose trainer.num_nodes=1"
        )
    if module.compiled == GRAPHS and trainer.accumulate_grad_batches > 1:
        raise ValueError(
            f"compile={GRAPHS} and trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: a CUDA graph "
            "overwrites the gradients of the previous batch; choose compile=true"
        )
    check_parts_for_data(arguments.nodes)
    module.model.check()
    try:
        optimizer: Optimizer = module.configure_optimizers()["optimizer"]
    except Exception as error:  # a third-party constructor can raise anything
        raise ConfigError(one_line(f"optimizer: {error}")) from error
    check_masks(module, datamodule)
    if module.model.condition_source is not None:
        module.model.condition_source.check(datamodule)
    if not isinstance(module.model, Generator):
        leave_out_scores(trainer, type(module.model).__name__)
    measured = measured_by(module, trainer)
    if arguments.metric not in measured:
        raise ValueError(f"metric={arguments.metric}: not measured in this run; choose {', '.join(measured)}")
    for keeper in callbacks_of(trainer, LastCheckpoint):
        keeper.check(measured)
    return optimizer


def check_masks(module: TrainingModule, datamodule: ImageDataModule) -> None:
    """Raise ConfigError if the model learns or predicts masks that the data do not have."""
    model = module.model
    classes = model.mask_classes if isinstance(model, Predictor) else None
    if (module.objective.needs_masks or classes is not None) and datamodule.mask_classes != classes:
        found = "no masks" if datamodule.mask_classes is None else f"masks of {datamodule.mask_classes} classes"
        raise ConfigError(
            f"data: these images have {found}, the model predicts {classes} classes; "
            "choose data=scenes or data=paired_folder"
        )
    if isinstance(model, Predictor) and model.has_instances and not datamodule.has_instances:
        raise ConfigError("model.instances=true: these masks have no instances; choose data=scenes, or leave it out")


def leave_out_scores(trainer: L.Trainer, model: str) -> None:
    """Remove the scores of samples that an experiment chooses. Raise ConfigError if the command line chooses them."""
    for scores in callbacks_of(trainer, SampleScores):
        if any(key == "callbacks" or key.startswith("callbacks.scores") for key in typed_keys()):
            raise ConfigError(f"callbacks.scores: a {model} draws no samples; choose callbacks=default")
        trainer.callbacks.remove(scores)  # type: ignore[attr-defined]


def measured_by(module: TrainingModule, trainer: L.Trainer) -> list[str]:
    """The metrics of a run by which it can be compared."""
    model = module.model
    found = [BITS] if isinstance(model, Likelihood) else []
    if isinstance(model, Predictor) and model.mask_classes is not None:
        found += [f"val/{name}" for name in segmentation.names(model.mask_classes)]
        found += [f"val/{name}" for name in instances.NAMES if model.has_instances]
    found += [f"val/{name}" for name in module.objective.figures]
    return found + [name for scores in callbacks_of(trainer, SampleScores) for name in scores.names]


def resumable(arguments: Arguments, module: TrainingModule, optimizer: Optimizer) -> Arguments:
    """The arguments with the checkpoint that ckpt_path leads to, a link or a file.

    Raises:
        FileNotFoundError, Damaged, ValueError: the file does not exist, is damaged, or belongs to another run.
    """
    path = locate(str(arguments.ckpt_path))
    content, source = read_checkpoint(path), f"ckpt_path={path}"
    of_checkpoint(content, source, arguments.trust)
    check_resumable(content, module, optimizer, source)
    return arguments.from_checkpoint(path)


def check_parts_for_data(nodes: Mapping[str, Node[Any]]) -> None:
    """Raise ValueError if a part is made for images of another size, channels or classes than the data have."""
    data = drawn_images(nodes["data"].node, nodes["condition"].node if "condition" in nodes else None)
    for key, node in ((key, part.node) for key, part in nodes.items() if key != "data"):
        for ours, theirs in IMAGES.items():
            if simplest(node.get(theirs, data[ours])) != simplest(data[ours]):
                raise ValueError(
                    f"{key}.{theirs}={node[theirs]} and data.{ours}={data[ours]}: the network is for other images; "
                    f"leave out {key}.{theirs}"
                )


@dataclass(frozen=True)
class DataArguments:
    """The keys that are needed to count the classes, before anything else is checked."""

    data: Node[ImageDataModule]
    trust: list[str]


def count_classes(config: DictConfig) -> None:
    """Replace data.num_classes=auto with the number of classes in the data, or with null.

    Network, samples and data must agree on this number, so it is read from the data before anything is made.

    Raises:
        ConfigError, ValueError, FileNotFoundError: the data cannot count their classes or cannot be read.
    """
    if OmegaConf.select(config, "data.num_classes") != AUTO:
        return
    node = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
    chosen = OmegaConf.create({"data": node, "trust": config.get("trust") or []})
    config.data.num_classes = parse(chosen, DataArguments).data.make().count_classes()
    if config.data.num_classes is not None:
        _print_classes(config.data.num_classes)


@rank_zero_only
def _print_classes(count: int) -> None:
    print(f"data: {count} class folders, used as classes; data.num_classes=null trains without classes")
