"""What the trainer wants of a teacher, whatever it is: a model, several, a function, a column of the data, a cache."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from hf_distill.data.targets import ProblemType

TEACHER_INPUTS = "teacher_inputs"
"""The entry of a batch that holds teachers' own views of the rows: a list with one mapping of tensors for each."""


class TeacherOutput(NamedTuple):
    """What a teacher gives for a batch.

    Attributes:
        logits: of each member of an ensemble, or of the one that there is, on the student's device.
    """

    logits: list[Tensor]


class SoftTargetSource(ABC):
    """Where soft targets come from.

    Attributes:
        batch_keys: entries of a batch that are the teacher's alone; a student does not get them.
        can_be_remembered: it gives the same output for the same batch, and running it costs something.
    """

    batch_keys: frozenset[str] = frozenset()
    can_be_remembered: bool = False

    @abstractmethod
    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Return the logits of each member for a batch; no gradient flows through them."""

    def combine(self, output: TeacherOutput, temperature: float, problem_type: ProblemType) -> Tensor:
        """Make one teacher's logits of what the members give.

        Args:
            output: of a batch.
            temperature: at which the soft targets will be taken; a mean of probabilities depends on it.
            problem_type: the kind of target.

        Returns:
            `(batch, num_labels)` or `(batch, tokens, num_labels)`, in the student's label order.
        """
        return output.logits[0]

    def by_teacher(self, output: TeacherOutput, problem_type: ProblemType) -> dict[str, Tensor]:
        """Return the logits that can be compared with labels, by the name of who gives them; the whole comes last."""
        return {"the teacher": output.logits[0]}

    def mask(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows `(batch,)` or tokens `(batch, tokens)` have soft targets; None: all of them."""
        return None


def unusable(logits: Tensor, *, rules_out: bool = True) -> Tensor:
    """Tell which logits are none: NaN, infinity, and -inf, which rules a class out, where that cannot be."""
    return logits.isnan() | (logits.isposinf() if rules_out else logits.isinf())


def check_logits(logits: Tensor, *, rules_out: bool = True) -> None:
    """Refuse a teacher's logits that are not numbers.

    Args:
        logits: of a batch.
        rules_out: negative infinity is one, which rules a class out.

    Raises:
        ValueError: some are NaN or infinite.
    """
    if not rules_out and bool(logits.isneginf().any()):
        raise ValueError(
            "the teacher rules classes out (logits of -inf), and this soft_loss would be infinite there: take kl, js, "
            "hard, dist or wttm"
        )
    found = unusable(logits)
    if bool(found.any()):
        raise ValueError(
            f"the teacher's logits are NaN or infinite in {int(found.sum())} of {logits.numel()} places: its "
            "weights are damaged, or teacher_dtype or the run's mixed precision is too narrow for it (float16 "
            "overflows above 65504; use bfloat16, bf16=True in the place of fp16=True, or float32)"
        )


def logits_of(outputs: Any) -> Tensor:
    """Return a classifier's logits, whichever form of output it has.

    Raises:
        ValueError: the output names its parts, and none of them is the logits.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" not in outputs:
        raise ValueError(
            f"a classifier's output has logits, this model's has {', '.join(outputs)}: take a model with a "
            "classification head"
        )
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits
