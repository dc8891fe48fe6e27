"""Measures a trained model, or images from anywhere.
Without other words it draws as the model's own run does. The options marked * are for a model that names none.

python -m src.evaluate ckpt_path=RUN/checkpoints/last.ckpt                        distances, precision, recall
python -m src.evaluate ckpt_path=… metrics=inception num_samples=10000            FID
python -m src.evaluate ckpt_path=… samplers=[ddim,heun] num_steps=[5,10,20]       over the number of evaluations
python -m src.evaluate ckpt_path=… metrics=likelihood                             bits per dimension
python -m src.evaluate images=DIR reference=DIR metrics=inception                 of any images
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("evaluate")  # before the imports that take time

from lightning_diffusion.app.cli import Program  # noqa: E402
from lightning_diffusion.configuration.trusted_targets import DRAWING  # noqa: E402

main = Program("evaluate", __doc__, model_groups=DRAWING)

if __name__ == "__main__":
    main()
