"""A limit on the share of training time that recurring work takes."""

import contextlib
import time
from collections.abc import Iterator


class Budget:
    """Limits recurring work to a share of the time since `start`. Each repetition is expected to take equally long.

    Args:
        share: in (0, 1]; None sets no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.start()

    def start(self) -> None:
        self._started, self._total, self._last = time.monotonic(), 0.0, 0.0

    def allows_another(self) -> bool:
        """Whether the next repetition fits into the share, if it takes as long as the last one."""
        if self.share is None:
            return True
        return self._total + self._last <= self.share * (time.monotonic() - self._started)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the time of the work inside."""
        began = time.monotonic()
        yield
        self._last = time.monotonic() - began
        self._total += self._last
