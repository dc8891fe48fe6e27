"""Reports the cost of a network before it is trained.

python -m src.summary
python -m src.summary backbone=adm data=mnist
python -m src.summary experiment=cifar10 backbone.channels=192
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("summary")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("summary", __doc__, config_name="train")

if __name__ == "__main__":
    main()
