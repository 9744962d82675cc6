"""A teacher at work: frozen, on its device, answering in the student's labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.objective.losses import ProblemType
from hf_distill.teachers.label_space import align_labels, names_in_order
from hf_distill.teachers.loading import forward_parameters, logits_of


class FrozenTeacher:
    """Logits of a teacher for a student's batches.

    Args:
        model: the teacher; it is put in evaluation mode, taken out of training, moved to `device` (unless it is
            quantised or dispatched over devices already) and converted to `dtype`, in place.
        student: the student, whose labels the logits are to be in.
        device: where the teacher runs.
        dtype: `float32`, `bfloat16` or `float16`; None and `auto` leave the weights as they are.
        label_map: see `hf_distill.teachers.label_space.align_labels`.
        problem_type: the kind of target, if it is known.

    Raises:
        ValueError: the teacher is the student, shares parameters with it, or their labels do not correspond.
    """

    def __init__(
        self,
        model: nn.Module,
        student: nn.Module,
        *,
        device: torch.device,
        dtype: str | None = None,
        label_map: Mapping[str, str] | None = None,
        problem_type: ProblemType | None = None,
    ) -> None:
        refuse_own_teacher(model, student)
        index = _label_index(model, student, label_map, problem_type)
        model.eval()
        model.requires_grad_(False)
        if not getattr(model, "is_quantized", False) and getattr(model, "hf_device_map", None) is None:
            model.to(device=device, dtype=None if dtype in (None, "auto") else getattr(torch, dtype))
        self.model = model
        self.inputs = forward_parameters(model)
        inputs_of_student = forward_parameters(student)
        self.inputs_of_its_own = self.inputs - inputs_of_student if inputs_of_student else set()
        self._label_index = None if index is None else torch.tensor(index, device=device)
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Run the teacher, without gradients.

        Args:
            inputs: a batch. Labels and, unless its `forward` names no input at all, entries that it does not name are
                left out; floating tensors are converted to the type of its weights.

        Returns:
            `(batch, num_labels)` or `(batch, tokens, num_labels)`, in the student's label order.
        """
        if self.model.training:  # a caller may have set it by way of a parent module
            self.model.eval()
        names = self.inputs or inputs.keys() - {"labels"}
        own = {name: self._converted(value) for name, value in inputs.items() if name in names}
        with torch.no_grad():
            outputs: Any = self.model(**own)
            logits = logits_of(outputs)
            return logits if self._label_index is None else logits.index_select(-1, self._label_index)

    def _converted(self, value: Any) -> Any:
        if self._dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self._dtype)
        return value


def refuse_own_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Raise ValueError if freezing the teacher would freeze the student, or parts of it."""
    taught_by = {parameter.data_ptr() for parameter in teacher.parameters()} - {0}
    shared = [name for name, parameter in student.named_parameters() if parameter.data_ptr() in taught_by]
    if teacher is student:
        what = "is"
    elif shared:
        what = f"shares {', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''} with"
    else:
        return
    raise ValueError(
        f"the teacher {what} the student, so freezing it would freeze the student: pass a copy, "
        "teacher=copy.deepcopy(model)"
    )


def check_logits(logits: Tensor) -> None:
    """Refuse a teacher's logits that are not numbers.

    Raises:
        ValueError: some are NaN or positive infinity (negative infinity rules a class out).
    """
    unusable = logits.isnan() | logits.isposinf()
    if bool(unusable.any()):
        raise ValueError(
            f"the teacher's logits are NaN or infinite in {int(unusable.sum())} of {logits.numel()} places: its "
            "weights are damaged, or teacher_dtype is too narrow for it (float16 overflows above 65504; use bfloat16 "
            "or float32)"
        )


def _label_index(
    teacher: nn.Module, student: nn.Module, label_map: Mapping[str, str] | None, problem_type: ProblemType | None
) -> list[int] | None:
    teacher_config: Any = getattr(teacher, "config", None)
    student_config: Any = getattr(student, "config", None)
    if teacher_config is None or student_config is None:
        return None
    if problem_type == "regression":
        if teacher_config.num_labels != student_config.num_labels:
            raise ValueError(
                f"the teacher has {teacher_config.num_labels} outputs, the student {student_config.num_labels}: in "
                "regression both need the same"
            )
        return None
    return align_labels(names_in_order(teacher_config.id2label), names_in_order(student_config.id2label), label_map)
