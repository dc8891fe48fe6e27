"""Draws samples from a trained model, or edits pictures with it.
By default it draws as the model's own run does. The options marked * apply if the model's file has none.

python -m src.sample ckpt_path=RUN/checkpoints/last.ckpt                                  64 samples
python -m src.sample ckpt_path=… num_samples=1000 label=3 seed=1                          samples of one class
python -m src.sample ckpt_path=… sampler.num_steps=10                                     in ten steps
python -m src.sample ckpt_path=… sampler=unipc time_grid=logsnr sampler.num_steps=10      with another sampler
python -m src.sample ckpt_path=… guidance=cfg guidance.scale=3                            more typical samples
python -m src.sample ckpt_path=… edit=inpaint images=[a.png] mask=left                    fills in the left half
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("sample")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402
from lightning_diffusion.configuration.trusted_targets import DRAWING  # noqa: E402

main = Program("sample", __doc__, model_groups=DRAWING)

if __name__ == "__main__":
    main()
