"""How often to do what takes long."""

import contextlib
import time
from collections.abc import Iterator


class Budget:
    """A share of the time since a start, for work that comes again and takes about as long each time.

    Args:
        share: in (0, 1]; None sets no bound.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.start()

    def start(self) -> None:
        self._started, self._total, self._last = time.monotonic(), 0.0, 0.0

    def allows_another(self) -> bool:
        """Whether the next piece of work, if it takes as long as the last one, stays within the share."""
        if self.share is None:
            return True
        return self._total + self._last <= self.share * (time.monotonic() - self._started)

    @contextlib.contextmanager
    def spent(self) -> Iterator[None]:
        """Work inside counts."""
        began = time.monotonic()
        yield
        self._last = time.monotonic() - began
        self._total += self._last
