"""Measures a trained model, or any images.
By default it draws as the model's own run does. The options marked * apply if the model's file has none.

python -m src.evaluate ckpt_path=RUN/checkpoints/last.ckpt                        distances, precision, recall
python -m src.evaluate ckpt_path=… metrics=inception num_samples=10000            FID
python -m src.evaluate ckpt_path=… samplers=[ddim,heun] num_steps=[5,10,20]       scores over network evaluations
python -m src.evaluate ckpt_path=… metrics=likelihood                             bits per dimension
python -m src.evaluate images=DIR reference=DIR metrics=inception                 FID of any images
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("evaluate")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402
from lightning_diffusion.configuration.trusted_targets import DRAWING  # noqa: E402

main = Program("evaluate", __doc__, model_groups=DRAWING)

if __name__ == "__main__":
    main()
