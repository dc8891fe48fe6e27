"""One of two ranks that train and score samples, of which the second takes its time: python -m … FOLDER SECONDS

Run with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set. Writes FOLDER/<rank>.json, scores and
collectives, and FOLDER/averaged.pt, the weights.
"""

import datetime
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.profiler import ProfilerActivity, profile

from tests import runs
from tests.training.test_scores import callback, quick

TIME_OUT = 4  # seconds, of a collective


def main(folder, seconds):
    rank = int(os.environ["RANK"])
    scores = callback(folder / "cache", every_n_steps=2, num_samples=50, batch_size=25)
    part = scores._features_of

    def slow(*args):
        time.sleep(rank * seconds)
        return part(*args)

    scores._features_of = slow
    strategy = DDPStrategy(process_group_backend="gloo", timeout=datetime.timedelta(seconds=TIME_OUT))
    trainer = runs.trainer(2, [scores], devices=2, strategy=strategy, val_check_interval=2)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        module = quick(runs.module())
        trainer.fit(module, runs.digits())
    names = (event.name() for event in profiled.profiler.kineto_results.events())  # its own `events` takes seconds
    collectives = Counter(name for name in names if name.startswith("gloo:"))
    result = {"scores": {name: score.value for name, score in scores.scores.items()}, "collectives": collectives}
    if rank == 0:
        torch.save(module.ema.model.state_dict(), folder / "averaged.pt")
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
