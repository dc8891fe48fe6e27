"""Writes the report of a run or a sweep: report.html, a self-contained page, report.csv and plots.

python -m src.report runs=runs/sweeps/TIME              of a sweep
python -m src.report runs=runs/digits/TIME              of one run
python -m src.report runs=runs metric=fd_classifier     all runs, compared by another metric
python -m src.report runs=… output_dir=appendix num_pictures=6
"""

from lightning_diffusion.system.interrupt import leave_at_once

leave_at_once("report")  # before the slow imports

from lightning_diffusion.app.cli import Program  # noqa: E402

main = Program("report", __doc__)

if __name__ == "__main__":
    main()
