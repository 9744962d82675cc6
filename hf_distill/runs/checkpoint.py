"""A checkpoint of a stage: whether it is whole, and where training stood."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that `Trainer` has written to its end, and where training stood."""

    path: Path
    step: int
    state: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint | None":
        """Read a checkpoint; None if the process was killed while writing it.

        `Trainer` writes trainer_state.json last, so a checkpoint is whole if that file is.
        """
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            return cls(folder, int(state["global_step"]), state)
        except (OSError, ValueError, KeyError):
            return None

    @property
    def is_final(self) -> bool:
        """Tell whether training was over when it was written."""
        return self.step >= int(self.state["max_steps"])

    @property
    def seconds(self) -> float:
        """Return the time that training had taken, 0.0 if the process was killed before it was noted."""
        try:
            return float(json.loads((self.path / "seconds.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return 0.0
