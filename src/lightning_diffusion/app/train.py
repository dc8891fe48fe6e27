"""Trains a model of images, samples from it and measures it: a diffusion model, or another family by model=.

python -m src.train                                         digits on a CPU, in a minute or two
python -m src.train experiment=mnist trainer.devices=4      another data set, on four GPUs
python -m src.train model=vae                               another family: autoregressive, vae, gan
python -m src.train schedule=linear schedule.T=250          another schedule, with one of its keys
python -m src.train -m schedule=linear,cosine seed=0,1      a sweep of four runs
python -m src.train resume=runs/digits/TIME                 resumes a run that was stopped
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("train")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402
from lightning_diffusion.app.sweep import run_job  # noqa: E402

main = Program("train", __doc__, job=run_job)

if __name__ == "__main__":
    main()
