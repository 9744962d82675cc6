"""How long a training takes, over restarts too."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_distill.runs.workspace import write_whole


class Clock(TrainerCallback):
    """Count the seconds of training, over restarts too: each checkpoint notes how long it took to get there."""

    def __init__(self, seconds_before: float) -> None:
        self._before = seconds_before
        self._start: float | None = None
        self._total = seconds_before

    def seconds(self) -> float:
        """Return the seconds of all training so far, that before a restart included."""
        return self._total

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start to count."""
        self._start = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note beside a checkpoint how long it took to get there."""
        self.on_train_end(args, state, control)
        if state.is_world_process_zero:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "seconds.json"
            write_whole(file, json.dumps(self._total))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count up to now."""
        assert self._start is not None
        self._total = self._before + time.perf_counter() - self._start
