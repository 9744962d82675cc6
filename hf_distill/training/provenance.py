"""Who learns from whom, noted when a trainer is new: later its teacher may be released, and its student wrapped."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import nn

from hf_distill.teachers.external import TeacherColumn
from hf_distill.teachers.loading import unwrapped
from hf_distill.teachers.specialists import Specialist

_SHAPE = ("num_hidden_layers", "hidden_size")


@dataclasses.dataclass
class Model:
    """A model that takes part, noted before it is wrapped, sharded or released.

    Attributes:
        name: Hub id or folder that it was loaded from, if it was.
        commit: on the Hub.
        config: `model_type` and what else describes it.
        num_parameters: all of them; of an adapter those of its base too.
        is_adapter: whether it is one, beside its base.
        specialist: how it is one that knows only some of the labels, None if it is not.
        is_function: whether it is none, but a function.
        has_code: whether its code comes with it, and is not in this package.
    """

    name: str | None
    commit: str | None
    config: dict[str, Any]
    num_parameters: int = 0
    is_adapter: bool = False
    specialist: dict[str, Any] | None = None
    is_function: bool = False
    has_code: bool = False

    @classmethod
    def of(cls, model: Any) -> "Model":
        """Note a model, a specialist or a function."""
        specialist = None
        if isinstance(model, Specialist):
            specialist, model = {"oversampling": model.oversampling, "dustbin": model.dustbin}, model.model
        if not isinstance(model, nn.Module):
            return cls(None, None, {"model_type": "function"}, is_function=True)
        base = unwrapped(model)
        config = getattr(base, "config", None)
        shape = {name: getattr(config, name, None) for name in _SHAPE}
        return cls(
            name=getattr(config, "_name_or_path", None) or None,
            commit=getattr(config, "_commit_hash", None),
            config={
                "model_type": getattr(config, "model_type", None) or type(base).__name__,
                **{name: value for name, value in shape.items() if isinstance(value, int)},
            },
            num_parameters=sum(map(_count, model.parameters())),
            is_adapter=hasattr(model, "get_base_model"),
            specialist=specialist,
            has_code=bool(getattr(config, "auto_map", None)) and not type(base).__module__.startswith("hf_distill."),
        )

    @property
    def section(self) -> dict[str, Any]:
        """Return what a recipe would say of it."""
        return {
            "model": self.name,
            "config": None if self.name else self.config,
            "function": self.is_function,
            "specialist": self.specialist,
            "training": None,
            "trust_remote_code": self.has_code,
        }

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Return where it comes from; a name without a commit is not taken for one on the Hub."""
        from hf_distill.hub.card.lineage import NOWHERE, model_origin

        found = dict(NOWHERE) if self.name is None else model_origin(self.name, self.commit)
        if found["revision"] is None:
            found["model"] = None
        return {**found, **({"adapter": True} if self.is_adapter else {})}


@dataclasses.dataclass
class Provenance:
    """Who learns from whom.

    Attributes:
        teachers: models and functions; none if the student learns from labels alone.
        column: of the data, if that is the teacher.
        student: the student.
    """

    teachers: list[Model]
    column: str | None
    student: Model

    @classmethod
    def of(cls, trainer: Any) -> "Provenance":
        """Note what a new trainer has; later its teacher may be released, and its student wrapped or sharded."""
        listed = trainer.teacher if isinstance(trainer.teacher, list) else [trainer.teacher]
        teachers, column = [Model.of(each) for each in listed if each is not None], None
        if not teachers and trainer.args.uses_teacher:
            if isinstance(trainer.soft_targets, TeacherColumn):
                column = trainer.soft_targets.column
            else:  # it learns from soft targets of another run
                known = trainer.cache.targets.key.get("about", {}).get("teachers") or [{}]
                teachers = [
                    Model(each.get("name") or None, each.get("commit"), {"model_type": "teacher"}) for each in known
                ]
        student = Model.of(trainer.model)
        if student.commit is None and student.name in [teacher.name for teacher in teachers]:
            student.name = None  # it was made of some of its teacher's layers
        return cls(teachers, column, student)

    def teacher_sections(self) -> list[dict[str, Any]]:
        """Return what a recipe would say of the teachers."""
        if self.column is not None:
            return [{"column": self.column, "model": None, "config": None, "specialist": None, "training": None}]
        return [teacher.section for teacher in self.teachers]

    def origins(self, finetuned_from: str | None, seed: int, dataset: Mapping[str, Any]) -> dict[str, Any]:
        """Return the lineage as `Results` has it."""
        from hf_distill.hub.card.lineage import NOWHERE, model_origin

        teachers = [teacher.origin for teacher in self.teachers] if self.column is None else [dict(NOWHERE)]
        student = self.student.origin
        if finetuned_from is not None:
            student = {**student, **model_origin(finetuned_from)}
        return {
            "teachers": [{**origin, "seed": None} for origin in teachers],
            "student": {**student, "seed": seed, "model_type": self.student.config["model_type"]},
            "dataset": dataset,
        }


def _count(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # the first of one that ZeRO-3 has sharded
