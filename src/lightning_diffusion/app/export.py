"""Writes a trained model for other programs.

python -m src.export ckpt_path=RUN/checkpoints/last.ckpt output_dir=NEW           for diffusers' pipelines
python -m src.export ckpt_path=… output_dir=NEW label=3                           with one fixed class
python -m src.export ckpt_path=… output_dir=NEW format=safetensors                one file
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("export")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("export", __doc__)

if __name__ == "__main__":
    main()
