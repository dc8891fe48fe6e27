"""Predicts the masks of pictures with a trained segmentation model.

python -m src.predict ckpt_path=RUN/checkpoints/last.ckpt images=FOLDER                   each picture below it
python -m src.predict ckpt_path=… images=a.png output_dir=NEW                             one picture
python -m src.predict ckpt_path=… images=FOLDER unreadable=skip                           without damaged files
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("predict")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("predict", __doc__)

if __name__ == "__main__":
    main()
