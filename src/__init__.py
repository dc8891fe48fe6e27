"""The programs as users start them in a checkout: python -m src.train. They run the checkout's own package, even if
another copy is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
