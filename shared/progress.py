"""Progress of a loop: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Reports the steps of a loop on standard error; use as a context manager and call `update` after each step."""

    def __init__(self, total: int, description: str, *, start: int = 0, enabled: bool = True):
        """`start` steps of `total` are done already; `enabled=False` reports nothing (other processes)."""
        self._total, self._description, self._step = total, description, start
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, desc=description, disable=not (enabled and on_terminal))
        self._writes_lines = enabled and not on_terminal
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, values: Mapping[str, float] | None = None) -> None:
        """One more step is done; `values` are shown with four digits."""
        self._step += 1
        shown = {name: f"{value:.4g}" for name, value in (values or {}).items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._writes_lines and (self._step == self._total or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            facts = " ".join(f"{name} {value}" for name, value in shown.items())
            line = f"{self._description}: {self._step}/{self._total}, {now - self._started:.0f} s"
            print(f"{line}, {facts}" if facts else line, file=sys.stderr, flush=True)
