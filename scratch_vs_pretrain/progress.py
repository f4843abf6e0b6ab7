"""One rule for all progress bars: a bar on a terminal, now and then a line in a log file."""

import sys
from typing import Any

from tqdm import tqdm

BAR_SECONDS = 0.5
LINE_SECONDS = 30.0
LINE = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Bar(tqdm):
    """tqdm's bar, with its arguments; where nobody watches, a line every `LINE_SECONDS` at most.

    Such lines begin after `LINE_SECONDS`; a bar that stays at its end (``leave``) ends in one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._in_lines = not (options.get("file") or sys.stderr).isatty()
        if self._in_lines:
            # tqdm's monitor draws whatever is older than maxinterval.
            limits = dict.fromkeys(("mininterval", "maxinterval", "delay"), LINE_SECONDS)
            options |= {**limits, "bar_format": LINE, "position": 0}
        else:
            options = {"mininterval": BAR_SECONDS, "dynamic_ncols": True, **options}
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self._in_lines:
            return super().display(msg, pos)  # type: ignore[func-returns-value]
        if msg is None:
            print(self, file=self.fp, flush=True)
        return None

    def close(self) -> None:
        if self._in_lines and not self.disable:
            if self.leave:
                self.display()
            self.leave = False
        super().close()
