"""The words that users type in a checkout: python -m src.train. They run this checkout's package, wherever else one
is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
