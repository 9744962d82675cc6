"""A batch's soft targets as the loss wants them: one teacher's logits, watched, and remembered in evaluation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.teachers.cache.eval_cache import EvalCache
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput, check_logits, unusable


class SoftTargetReader:
    """Reads a source batch by batch, without waiting for the device at each step."""

    def __init__(self, device: torch.device) -> None:
        self._num_unusable = torch.zeros((), dtype=torch.long, device=device)
        self._has_seen_some = False
        self._eval_cache = EvalCache()

    def forget(self) -> None:
        """Run the teacher anew over evaluation batches that come again."""
        self._eval_cache = EvalCache()

    def reset(self) -> None:
        """Begin to count unusable logits anew, for another training."""
        self._num_unusable.zero_()
        self._has_seen_some = False

    def remembered(self, source: SoftTargetSource, batch: Mapping[str, Any]) -> TeacherOutput:
        """Return the source's output for an evaluation batch, computed now or before."""
        return self._eval_cache.output(source, batch)

    def logits(self, source: SoftTargetSource, batch: Mapping[str, Any], step: Any, objective: Any) -> Tensor:
        """Return one teacher's logits for a batch, `(batch, num_labels)` or `(batch, tokens, num_labels)`.

        Args:
            source: the teacher.
            batch: of the student.
            step: with the temperature, and whether it is one of the training.
            objective: tells the problem type.

        Raises:
            ValueError: the first ones are not numbers; what is unusable in those that follow is counted.
        """
        output = source(batch) if step.is_training else self.remembered(source, batch)
        logits = source.combine(output, step.temperature, objective.kind(batch.get("labels")))
        if not self._has_seen_some:
            check_logits(logits, rules_out=objective.rules_out)
            self._has_seen_some = True
        else:
            self._num_unusable += unusable(logits, rules_out=objective.rules_out).sum()
        return logits

    def check(self) -> None:
        """Raise ValueError if any soft target since the start was no number."""
        count = int(self._num_unusable)
        if count:
            raise ValueError(
                f"the teacher's logits were NaN or infinite in {count} places since the start, so the student is "
                "spoilt: look at the teacher's inputs, or at teacher_dtype (float16 overflows)"
            )
