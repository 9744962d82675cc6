"""A run as the terminal shows it: one bar for each stage; where there is no terminal, a line for each tenth of it."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from hf_distill.cli.console import is_first_process, print_warnings
from hf_distill.runs.progress import Progress

_WIDE = 100  # columns of a terminal that has room for all that a bar shows


_OF_TRAIN = ("rows", "classes", "lengths", "sizes")  # the lines of the data's summary that a run shows


def progress_for(*, quiet: bool) -> Progress:
    """Return what shows a run here; of several processes the first one does."""
    if quiet or not is_first_process():
        return Progress()
    return Bars() if sys.stdout.isatty() else Lines()


class Lines(Progress):
    """A line for each stage, and for each tenth of it."""

    def __init__(self) -> None:
        self._number, self._of = 0, 0
        self.name, self._unit = "", "steps"
        self._num_steps, self._tenth = 0, 0
        self._start = 0.0
        self._later: dict[str, int] = {}  # the steps of stages that have not begun
        self._first = self._at = 0
        self._metrics: Mapping[str, float] = {}

    @property
    def where(self) -> str:
        """Say in which stage the run is, and how far it came."""
        of = f" at {self._at:,} of {self._num_steps:,} {self._unit}" if self._num_steps else ""
        return f"in stage {self.name}{of}" if self.name else "before the first stage"

    def begin(self, num_stages: int, steps: Mapping[str, int] | None = None) -> None:
        """Take note of how many stages there are, and of their steps."""
        self._of, self._later = num_stages, dict(steps or {})

    def data(self, lines: Sequence[tuple[str, str]], odd: Sequence[str]) -> None:
        """Show the rows, the classes and the lengths, and what is odd."""
        for name, text in lines:
            if name in _OF_TRAIN:
                self._line(f"{name:9} {text}")
        print_warnings([f"data: {line}" for line in odd])

    def stage(self, name: str, what: str, num_steps: int | None = None, *, unit: str = "steps", start: int = 0) -> None:
        """Show that a stage begins."""
        self._finish()
        self._number += name != "soft targets"
        self._later.pop(name, None)
        self.name, self._unit, self._num_steps, self._tenth = name, unit, num_steps or 0, 0
        self._start, self._first, self._at, self._metrics = time.monotonic(), start, start, {}
        steps = f", {num_steps:,} {unit}" if num_steps else ""
        goes_on = f" (goes on at step {start:,})" if start else ""
        place = f"[{self._number}/{self._of}] " if name != "soft targets" else "      "
        self._line(f"{place}{name}: {what}{steps}{goes_on}")

    def step(self, step: int, loss: float | None = None) -> None:
        """Show a line if another tenth of the stage is done."""
        self._at = step
        tenth = 10 * step // self._num_steps if self._num_steps else 0
        if tenth <= self._tenth or tenth >= 10:
            return
        self._tenth = tenth
        shown = [f"{10 * tenth} %", *([] if loss is None else [f"loss {loss:.4f}"]), *self._shown()]
        self._line(f"      {', '.join(shown)}, {self._left_in_words()}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics for the next line."""
        self._metrics = metrics

    def found(self, name: str, what: str) -> None:
        """Show a stage that was finished before."""
        self._finish()
        self._number += 1
        self._later.pop(name, None)
        self._line(f"[{self._number}/{self._of}] {name}: {what}")

    def done(self, text: str = "") -> None:
        """Show that the stage, or the run, has ended."""
        self._finish()
        if text:
            self._line(text)

    def _finish(self) -> None:
        if self.name:
            shown = "".join(f", {part}" for part in self._shown())
            self._line(f"      done in {duration(time.monotonic() - self._start)}{shown}")
        self.name = ""

    def _left(self) -> float:
        done = max(self._at - self._first, 1)
        return (time.monotonic() - self._start) / done * (self._num_steps - self._at)

    def _left_in_words(self) -> str:
        """Say how long the stage will take, and, as later stages were as fast, the run."""
        left, done = self._left(), max(self._at - self._first, 1)
        later = sum(self._later.values()) * (time.monotonic() - self._start) / done if self._unit == "steps" else 0.0
        return f"{duration(left)} left" + (f", run {duration(left + later)}" if later else "")

    def _shown(self) -> list[str]:
        return [f"{name.removeprefix('eval_')} {value:.4f}" for name, value in self._metrics.items() if name != "loss"]

    def _line(self, text: str) -> None:
        typer.echo(text)


class Bars(Lines):
    """A bar for each stage with its rate, its loss and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(highlight=False)
        self._is_narrow = self._console.width < _WIDE
        self._bar: Any = None
        self._evaluations = 0

    def stage(self, name: str, what: str, num_steps: int | None = None, *, unit: str = "steps", start: int = 0) -> None:
        """Begin a bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().stage(name, what, num_steps, unit=unit, start=start)
        self._evaluations = 0
        if num_steps:
            columns = (
                TextColumn("      {task.description}"),
                BarColumn(6 if self._is_narrow else 12),
                TextColumn("{task.fields[shown]}"),
            )
            self._bar = RichProgress(*columns, console=self._console, transient=True, auto_refresh=False)
            self._task = self._bar.add_task(name, total=num_steps, completed=start, shown="")
            self._bar.start()
            self._last = 0.0

    def step(self, step: int, loss: float | None = None) -> None:
        """Move the bar, at most ten times a second."""
        self._at = step
        now = time.monotonic()
        if self._bar is None or (now - self._last < 0.1 and step < self._num_steps):
            return
        self._last = now
        rate = (step - self._first) / max(now - self._start, 1e-9)
        parts = [f"{100 * step // self._num_steps:3d} %", f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"]
        parts += [] if loss is None else [f"loss {loss:.3f}"]
        parts += [] if self._is_narrow else self._shown()  # evaluations have lines of their own
        parts.append(self._left_in_words())
        self._bar.update(self._task, completed=step, shown="  ".join(parts))
        self._bar.refresh()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of some evaluations on lines of their own, and of all in the bar."""
        super().evaluated(step, metrics)
        if 10 * step // max(self._num_steps, 1) > self._evaluations:
            self._evaluations = 10 * step // max(self._num_steps, 1)
            self._line(f"      step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        super()._finish()

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False)


def duration(seconds: float) -> str:
    """Return a time in words of at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
