"""Draws samples from a trained model, or edits pictures with it.

python -m src.sample ckpt_path=RUN/checkpoints/last.ckpt                                  64 samples
python -m src.sample ckpt_path=… num_samples=1000 label=3 seed=1                          of one class
python -m src.sample ckpt_path=… sampler=unipc time_grid=logsnr sampler.num_steps=10      in ten evaluations
python -m src.sample ckpt_path=… guidance=cfg guidance.scale=3                            more typical ones
python -m src.sample ckpt_path=… edit=inpaint images=[a.png] mask=left                    half a picture, completed
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("sample")  # before the imports that take time

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("sample", __doc__)

if __name__ == "__main__":
    main()
