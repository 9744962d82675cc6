"""What the trainer asks of a teacher, whatever it is: a model, several, a function, a column of the data."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from hf_distill.data.targets import ProblemType

TEACHER_INPUTS = "teacher_inputs"
"""The entry of a batch that holds teachers' own views of the rows: a list with one mapping of tensors for each."""


class Teaching(Protocol):
    """A teacher at work.

    Attributes:
        own_entries: entries of a batch that are the teacher's alone; a student does not get them.
    """

    own_entries: set[str]

    def start(self, inputs: Mapping[str, Any]) -> Callable[[], list[Tensor]]:
        """Begin to fetch what the teacher needs of a batch.

        Returns:
            a function that runs the teacher and returns what each member says, on the student's device. What runs
            between the two calls may overlap with copies between devices.
        """
        ...

    def combine(self, members: list[Tensor], temperature: float, problem_type: ProblemType) -> Tensor:
        """Make one teacher's logits of what its members say.

        Args:
            members: what `start` has led to.
            temperature: at which the soft targets will be taken; a mean of probabilities depends on it.
            problem_type: the kind of target.

        Returns:
            `(batch, num_labels)` or `(batch, tokens, num_labels)`, in the student's label order.
        """
        ...

    def judged(self, members: list[Tensor], problem_type: ProblemType) -> dict[str, Tensor]:
        """Return the logits that can be compared with labels, by the name of who gives them; the whole comes last."""
        ...

    def mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows `(batch,)` or tokens `(batch, tokens)` have soft targets; None: all of them."""
        ...
