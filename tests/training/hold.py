"""A process that owns a folder until it is killed: python -m tests.training.hold FOLDER [fork]

It prints a number when it does: that of its child, which outlives it, where there is one.
"""

import os
import sys
import time
from pathlib import Path

from lightning_diffusion.training.ownership import own

if __name__ == "__main__":
    own(Path(sys.argv[1]))
    child = os.fork() if len(sys.argv) > 2 else 0  # a loader's worker, say
    if child or len(sys.argv) == 2:
        print(child, flush=True)
    time.sleep(100)
