"""The time that a run has taken."""

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds of training, those before a resume included."""

    before_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        return self.before_s + time.monotonic() - self.started_s
