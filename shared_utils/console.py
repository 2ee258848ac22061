"""What a person at the terminal sees: one-line messages and progress on stderr, results on stdout."""

import os
import sys
import time
from typing import Any, TextIO


class Console:
    """Messages go to stderr. `quiet` leaves errors only, `verbose` adds details; colour only on a terminal."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, color: bool = True, stream: TextIO | None = None):
        self.quiet = quiet
        self.verbose = verbose
        self.stream = stream or sys.stderr
        self.tty = self.stream.isatty()
        self._color = color and self.tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _line(self, text: str, ansi: str = "") -> None:
        text = " ".join(str(text).split("\n"))
        line = f"\033[{ansi}m{text}\033[0m" if ansi and self._color else text
        if self.tty and "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=self.stream)  # above a bar that is being drawn
        else:
            print(line, file=self.stream, flush=True)

    def error(self, text: str) -> None:
        self._line(f"error: {text}", "31")

    def warning(self, text: str) -> None:
        if not self.quiet:
            self._line(f"warning: {text}", "33")

    def info(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            self._line(text, "2")

    def progress(self, total: float | None, label: str, unit: str = "it", scale: bool = False) -> "Progress":
        """A progress display for `total` steps; use as a context manager and call `advance`."""
        return Progress(self, total, label, unit, scale)


class Progress:
    """A tqdm bar on a terminal, a plain line every 10 % (at most one a second) elsewhere, nothing when quiet."""

    def __init__(self, console: Console, total: float | None, label: str, unit: str, scale: bool):
        self.console = console
        self.total = total
        self.label = label
        self.unit = unit
        self.scale = scale
        self.done = 0.0
        self._bar: Any = None
        self._printed = 0
        self._last = self._start = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.tty and not self.console.quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                desc=self.label,
                unit=self.unit,
                unit_scale=self.scale,
                file=self.console.stream,
                leave=False,
                dynamic_ncols=True,
            )
        return self

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count `steps` as done; `note` is shown behind the bar."""
        self.done += steps
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(steps)
        elif self.total and not self.console.quiet:
            tenth = int(10 * self.done / self.total)
            now = time.monotonic()
            if tenth > self._printed and (now - self._last >= 1.0 or tenth >= 10):
                self._printed, self._last = tenth, now
                left = (now - self._start) * max(0.0, self.total - self.done) / self.done
                self.console.info(
                    f"{self.label}: {min(100, 10 * tenth)} % ({_seconds(left)} left{'; ' + note if note else ''})"
                )

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
