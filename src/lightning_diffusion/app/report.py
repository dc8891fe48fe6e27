"""Writes a run's or a sweep's report: report.html, which needs nothing else, report.csv and plots.

python -m src.report runs=runs/sweeps/TIME
python -m src.report runs=runs/digits/TIME              one run
python -m src.report runs=runs metric=fd_classifier     all there are, by another metric
python -m src.report runs=… output_dir=appendix num_pictures=6
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("report")  # before the imports that take time

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("report", __doc__)

if __name__ == "__main__":
    main()
