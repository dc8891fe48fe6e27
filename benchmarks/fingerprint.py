"""Hashes of what training and sampling compute on a CPU, to show that a change of the code left every bit as it was.

python -m benchmarks.fingerprint [--noise former] [NAME …] > before.txt     # then with the changed code, > after.txt
diff <(cut -d'|' -f2-4 before.txt) <(cut -d'|' -f2-4 after.txt)

Needs:  Fashion-MNIST in /usr/share/datasets for some cases, which are skipped without it.
Prints: for each case, hashes of the weights and of each set of samples, and the seconds that it took.
Takes:  a few minutes on two CPU cores.

Each case trains for 100 steps by `python -m src.train` and draws 64 samples by `python -m src.sample`, with one thread,
in a temporary folder. The weights are all floating-point values of last.ckpt, trained and averaged, in the order of its
state dict; their names do not count. Samples have two hashes: of their pixels, and of the floating-point numbers that
led to them (benchmarks/exact.py). `--noise former` takes the random numbers of benchmarks/former_noise.py, in runs
of one process. Compare hashes of one machine and one version of torch only.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.exact import digest
from benchmarks.turns import Table

REPOSITORY = Path(__file__).parent.parent
TRAIN, SAMPLE, FORMER = "src.train", "src.sample", "benchmarks.former_noise"
FASHION = Path("/usr/share/datasets/fashion-mnist")
STEPS = 100
TRAINED = (
    f"seed=0 logger=csv callbacks=default callbacks.samples.num_samples=10 hydra.run.dir=run "
    f"trainer.max_steps={STEPS} trainer.val_check_interval={STEPS}"
)
DRAWN = (
    "ckpt_path=run/checkpoints/last.ckpt num_samples=64 batch_size=64 seed=0 label=null device=cpu precision=32-true "
    "compile=false"
)
CLIP = "guidance=clip guidance.bound=1.0"


@dataclasses.dataclass(frozen=True)
class Case:
    """Words of one training, and of each set of samples by the name of its sampler; `needs` must be there."""

    train: str
    draws: Mapping[str, str]
    needs: Path = REPOSITORY
    processes: int = 1


CASES = {
    "digits": Case(
        "experiment=digits trainer=cpu",
        {
            "ddim": f"sampler=ddim sampler.num_steps=20 sampler.eta=0.0 time_grid=trailing {CLIP}",
            "ddpm": f"sampler=ddpm sampler.num_steps=20 sampler.variance=posterior time_grid=linear {CLIP}",
            "unipc": f"sampler=unipc sampler.num_steps=10 sampler.order=2 time_grid=logsnr {CLIP}",
        },
    ),
    "fashion_mnist": Case(  # Muon, attention, a flow
        f"experiment=fashion_mnist_quick trainer=cpu data.root={FASHION} backbone.channels=16",
        {"dpm_multistep": f"sampler=dpm_multistep sampler.num_steps=10 sampler.order=2 time_grid=karras_brief {CLIP}"},
        needs=FASHION,
    ),
    "dit": Case(
        "experiment=digits trainer=cpu backbone=dit backbone.dim=64 backbone.depth=3 denoiser.label_dropout=0.1",
        {"dpm_sde": "sampler=dpm_sde sampler.num_steps=10 time_grid=logsnr guidance=cfg guidance.scale=1.5"},
    ),
    "learned_variance": Case(
        "experiment=digits trainer=cpu optimizer=adamw backbone.channels=16 backbone.dropout=0.1 backbone.outputs=2 "
        "objective.vlb_weight=0.001 time_sampler=importance",
        {"ddpm": f"sampler=ddpm sampler.num_steps=20 sampler.variance=learned time_grid=linear {CLIP}"},
    ),
    "two_ranks": Case(  # gloo
        "experiment=digits trainer=ddp_cpu trainer.devices=2 backbone.channels=16",
        {"heun": f"sampler=heun sampler.num_steps=10 time_grid=trailing {CLIP}"},
        processes=2,
    ),
}


def weights(state: Mapping[str, Tensor]) -> str:
    """Of the floating-point values of a state dict."""
    return digest(value for value in state.values() if value.is_floating_point())


def run(program: str, words: str, folder: Path) -> None:
    """Runs it in the folder; where it fails, this program ends with what it said."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *program.split(), *words.split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"python -m {program} {words}: status {done.returncode}\n{done.stdout}{done.stderr}")


def fingerprint(case: Case, folder: Path, former: bool) -> tuple[str, str]:
    """Hashes of the weights, and of each set of samples: pixels, and the numbers behind them."""
    train, sample = (f"{FORMER} {TRAIN}", f"{FORMER} {SAMPLE}") if former else (TRAIN, SAMPLE)
    run(train, f"{case.train} {TRAINED}", folder)
    content = torch.load(folder / "run" / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    samples = []
    for sampler, words in case.draws.items():
        run("benchmarks.exact", f"{sampler}.txt {sample} {DRAWN} output_dir={sampler} {words}", folder)
        images = np.load(folder / sampler / "samples.npz")["images"]
        pixels = digest([torch.from_numpy(images)])
        samples.append(f"{sampler} {pixels} {(folder / f'{sampler}.txt').read_text()}")
    return weights(content["state_dict"]), ", ".join(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"all unless given: {', '.join(CASES)}")
    parser.add_argument("--noise", choices=["now", "former"], default="now", help="the generator of random numbers")
    given = parser.parse_args()
    names, former = given.names or list(CASES), given.noise == "former"
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"{', '.join(unknown)}: no such case; choose {', '.join(CASES)}")
    table = Table("fingerprint", "case", "weights", "samples", "seconds")
    for name in names:
        if not CASES[name].needs.exists():
            table.add(name, f"skipped: {CASES[name].needs} is missing", "", "")
            continue
        if former and CASES[name].processes > 1:
            table.add(name, "skipped: --noise former is for runs of one process", "", "")
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            hashes = fingerprint(CASES[name], Path(folder), former)
        table.add(name, *hashes, time.perf_counter() - began)


if __name__ == "__main__":
    main()
