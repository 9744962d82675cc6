"""The parts of the loss: their means for `log`, and the exact loss of an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.training.objective import TERMS, Step, Term


class LossLog:
    """Sums that stay on the device, and are read only when they are logged."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[str, Tensor] = {}
        self._num_steps = 0
        self._evaluated: list[Tensor] = []
        self._added: list[Tensor] = []
        self._num_ops_of_input: int | None = None

    # ---- Training ----

    def reset(self) -> None:
        """Forget what was added since the last entry."""
        self._parts = {}
        self._num_steps = 0

    def begin(self) -> None:
        """Begin anew, for another training."""
        self.reset()
        self._num_ops_of_input = None

    def num_operations(self, inputs: dict[str, Any], model: Any, estimate: Callable[[dict[str, Any]], int]) -> int:
        """Return an estimate of a batch's operations that is made once: it counts all parameters."""
        name = getattr(model, "main_input_name", "input_ids")
        size = inputs[name].numel() if name in inputs else 0
        if size and self._num_ops_of_input is None:
            self._num_ops_of_input = estimate(inputs) // size
        return size * (self._num_ops_of_input or 0)

    def add_step(self, means: Mapping[str, Tensor], scale: int, *, is_update: bool) -> None:
        """Add the means of a micro-batch."""
        for name, mean in means.items():
            self._parts[name] = self._parts.get(name, 0) + mean.detach().float() * scale
        self._num_steps += is_update

    def pop_means(self, accelerator: Any) -> dict[str, float]:
        """Return the mean of each term over the steps since the last time, and over all processes."""
        names = list(self._parts) or list(TERMS)
        parts = [self._parts.get(name, torch.zeros((), device=self._device)) for name in names]
        means = accelerator.reduce(torch.stack(parts) / max(self._num_steps, 1), reduction="mean").tolist()
        self.reset()
        return dict(zip(names, means, strict=True))

    # ---- Evaluation ----

    def start_evaluation(self) -> None:
        """Forget the evaluation before."""
        self._evaluated, self._added = [], []

    def add_evaluated(self, terms: Mapping[str, Term], gather: Any) -> None:
        """Add the terms of a batch; `gather` returns the rows of all processes, each once."""
        by_row = torch.stack([values for name in TERMS for values in terms[name]], dim=1)
        self._evaluated.append(gather(by_row).sum(dim=0))

    def add_beside(self, added: Tensor | None, num_rows: int, gather: Any) -> None:
        """Add what a subclass has added to the loss of a batch of `num_rows` rows; None: it has a loss of its own."""
        if added is None:
            return
        rows = gather(added.expand(num_rows).contiguous())
        self._added.append(torch.stack([rows.sum(), torch.ones_like(rows).sum()]))

    def finish_evaluation(self, metrics: dict[str, float], prefix: str, step: Step, has_teacher: bool) -> None:
        """Put the loss and its parts over all rows into metrics, those that there is anything to measure against.

        A set without any soft target is evaluated by its labels alone: its label loss with a small weight would pass
        for a good student's.
        """
        if not self._evaluated:
            return
        sums = torch.stack(self._evaluated).double().sum(dim=0).tolist()
        values, counts = dict(zip(TERMS, sums[::2], strict=True)), dict(zip(TERMS, sums[1::2], strict=True))
        means = {name: values[name] / max(counts[name], 1) for name in TERMS}
        weights = step.weights
        if has_teacher and not counts["soft"]:
            weights = {"label": 1.0, "soft": 0.0}
        loss = sum(weights[name] * means[name] for name in TERMS)
        if self._added:
            added, num_rows = torch.stack(self._added).double().sum(dim=0).tolist()
            loss += added / num_rows
        found = {"loss": loss if any(counts.values()) else None}
        found |= {"soft_loss": means["soft"]} if has_teacher and counts["soft"] else {}
        found |= {"label_loss": means["label"]} if counts["label"] else {}
        metrics |= {f"{prefix}_{name}": value for name, value in found.items() if value is not None}
        if found["loss"] is None:
            metrics.pop(f"{prefix}_loss", None)
