"""What a run tells of itself while it goes: stages, steps, evaluations. Who prints is the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback


class Progress:
    """Told where a run is; this one keeps it to itself.

    `stage`, `step` and `evaluated` come in this order: a stage begins, and ends with the next one or with `done`.
    """

    name = ""  # of the stage

    @property
    def where(self) -> str:
        """Say how far the run came."""
        return "on the way"

    def begin(self, num_stages: int, steps: Mapping[str, int] | None = None) -> None:
        """Take note of how many stages there are, and of how many steps each is expected to have."""

    def data(self, lines: Sequence[tuple[str, str]], odd: Sequence[str]) -> None:
        """Take note of what the data look like, and what is odd about them."""

    def stage(self, name: str, what: str, num_steps: int | None = None, *, unit: str = "steps", start: int = 0) -> None:
        """Begin a stage of so many steps; one that goes on begins at `start`."""

    def step(self, step: int, loss: float | None = None) -> None:
        """Take note of how far the stage is."""

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of the model's metrics on the evaluation rows."""

    def found(self, name: str, what: str) -> None:
        """Take note of a stage that was finished before."""

    def done(self, text: str = "") -> None:
        """End the stage, or the run."""


class StageCallback(TrainerCallback):
    """Tell the progress of one stage's training."""

    def __init__(self, progress: Progress, name: str, what: str, first_metric: str) -> None:
        self._progress = progress
        self._name = name
        self._what = what
        self._metric = f"eval_{first_metric}"
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the stage."""
        if state.is_world_process_zero:
            self._progress.stage(self._name, self._what, state.max_steps, start=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of a step."""
        if state.is_world_process_zero:
            self._progress.step(state.global_step, self._loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Take note of the loss, and of evaluations."""
        logs = logs or {}
        self._loss = logs.get("loss", self._loss)
        if self._metric in logs and state.is_world_process_zero:
            shown = {name.removeprefix("eval_"): logs[name] for name in ("eval_loss", self._metric) if name in logs}
            self._progress.evaluated(state.global_step, shown)

    def on_soft_targets(self, num_done: int, num_rows: int) -> None:
        """Take note of rows whose soft targets are cached."""
        if num_done == 0:
            self._progress.stage("soft targets", "computing the teacher's soft targets", num_rows, unit="rows")
        else:
            self._progress.step(num_done)
