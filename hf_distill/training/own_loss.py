"""What becomes of the trainer's loss where a subclass returns another."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_distill.training.objective import TERMS


class OwnLoss:
    """The losses that `DistillationTrainer.compute_loss` itself has returned in the present step.

    A subclass may add to that loss, call it with other counts, or return a loss of its own.
    """

    def __init__(self, names: Callable[[], Sequence[str]] = lambda: TERMS) -> None:
        self._names = names
        self._losses: list[Tensor] = []
        self._is_normalized = True
        self._counts: Mapping[str, Tensor] | None = None

    @contextmanager
    def of_step(self, num_items: Any) -> Iterator[None]:
        """Begin a step, or a batch of an evaluation, with these counts."""
        self._losses, self._counts = [], getattr(num_items, "by_term", None)
        yield
        self._counts = None

    def add(self, loss: Tensor, *, is_normalized: bool) -> None:
        """Add the loss of a batch; it is normalized if it is a mean over the whole accumulated batch."""
        self._losses.append(loss.detach())
        self._is_normalized = is_normalized

    @property
    def is_normalized(self) -> bool | None:
        """Tell whether the loss needs no division by the accumulated steps; None: it is a subclass's own."""
        return self._is_normalized if self._losses else None

    def counts_for(self, num_items: Tensor | int | None) -> Mapping[str, Tensor | int] | None:
        """Return the counts of the step, also where a subclass has made another number of the one that it was given."""
        if num_items is None:
            return None
        counts: Any = getattr(num_items, "by_term", self._counts)
        return counts if counts is not None else dict.fromkeys(self._names(), num_items)

    def added(self, loss: Tensor) -> Tensor | None:
        """Return what a subclass has added to the loss; None: it is a subclass's own."""
        return loss.detach() - torch.stack(self._losses).mean() if self._losses else None


def as_in_trainer(method: Callable) -> Callable:
    """Show the signature of `Trainer`'s method of this name for one that passes all of its arguments on."""
    method.__signature__ = inspect.signature(getattr(Trainer, method.__name__))  # type: ignore[attr-defined]
    return method
