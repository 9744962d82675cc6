"""A teacher that is a model: frozen, on its device, with its logits in the student's label order."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from hf_distill.data.processors import select_positions
from hf_distill.data.targets import ProblemType
from hf_distill.teachers.labels import align_labels, names_in_order
from hf_distill.teachers.loading import forward_parameters, unwrapped
from hf_distill.teachers.placement import place
from hf_distill.teachers.source import TEACHER_INPUTS, SoftTargetSource, TeacherOutput, logits_of


class TeacherModel(SoftTargetSource):
    """Logits of a teacher for a student's batches.

    Raises:
        ValueError: the teacher is the student, or shares parameters with it.
    """

    def __init__(
        self,
        model: nn.Module,
        student: nn.Module,
        label_index: Sequence[int] | None = None,
        *,
        device: torch.device,
        dtype: str | None = None,
        placement: str = "same",
        accelerator: Any = None,
        autocast_dtype: torch.dtype | None = None,
        view: int | None = None,
        compilation: Mapping[str, Any] | None = None,
    ) -> None:
        check_not_student(model, student)
        model.eval()
        model.requires_grad_(False)
        wanted = None if dtype in (None, "auto") else getattr(torch, dtype)
        self.device = place(model, placement, device=device, dtype=wanted, accelerator=accelerator, student=student)
        self.model = model
        self._forward: Any = model if compilation is None else torch.compile(model, **compilation)
        self._is_compiled = hasattr(self._forward, "_orig_mod")
        self.inputs = forward_parameters(model)
        inputs_of_student = forward_parameters(student)
        is_alike = view is None and bool(inputs_of_student)
        self.batch_keys = frozenset(self.inputs - inputs_of_student if is_alike else ())
        # Parts of a teacher that is split over processes must be run by all of them, whatever each remembers.
        self.can_be_remembered = placement != "sharded"
        self.view = view
        self._student_device = device
        self._autocast_dtype = autocast_dtype if self.device.type != device.type else None
        self.label_index = None if label_index is None else list(label_index)
        self._columns = None if label_index is None else torch.tensor(label_index, device=device)
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Run the teacher, without gradients."""
        view = self._view_of(batch)
        names = self.inputs or view.keys() - {"labels"}
        inputs = {name: self._converted(value) for name, value in view.items() if name in names}
        return TeacherOutput([self._run(send_to_device(inputs, self.device), view.get("token_positions"))])

    def mask(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell which tokens of the student a token of the teacher's, if it has tokens of its own, corresponds to."""
        positions = self._view_of(batch).get("token_positions")
        return None if positions is None else positions >= 0

    def _view_of(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.view is None:
            return inputs
        if TEACHER_INPUTS not in inputs:
            raise ValueError(
                f"the batch has no {TEACHER_INPUTS!r}, only {', '.join(inputs)}: the teacher has a processor of its "
                "own, whose view of the rows the data collator must add (TeacherInputCollator)"
            )
        view: Mapping[str, Any] = inputs[TEACHER_INPUTS][self.view]
        return view

    def _run(self, inputs: Mapping[str, Any], positions: Tensor | None) -> Tensor:
        if self.model.training:  # a caller may have set it by way of a parent module
            self.model.eval()
        with torch.no_grad(), self._autocast():
            logits = logits_of(self._outputs(inputs))
            if self._is_compiled:  # into CUDA graphs, its outputs are overwritten when it is run again
                logits = logits.clone()
            logits = logits.to(self._student_device)
            if self._columns is not None:
                logits = logits.index_select(-1, self._columns)
            return logits if positions is None else select_positions(logits, positions)[0]

    def _outputs(self, inputs: Mapping[str, Any]) -> Any:
        try:
            return self._forward(**inputs)
        except ValueError as error:
            if "padding token" not in str(error):
                raise
            raise ValueError(
                f"the teacher ({type(unwrapped(self.model)).__name__}) finds the end of a text by its pad_token_id, "
                "and its config has none: pass its tokenizer (processing_class or teacher_processing_class), or set "
                f"teacher.config.pad_token_id to the one that batches are padded with ({error})"
            ) from error

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    def _converted(self, value: Any) -> Any:
        if self._dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self._dtype)
        return value


def check_not_student(teacher: nn.Module, student: nn.Module) -> None:
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


def label_index(
    teacher: nn.Module, student: nn.Module, label_map: Mapping[str, str] | None, problem_type: ProblemType | None
) -> list[int] | None:
    """Return for each label of the student the teacher's logit that speaks of it; None: they are the same.

    Raises:
        ValueError: their labels do not correspond; see `align_labels`.
    """
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
