"""The models of a run: teachers and students as the recipe describes them, all built once before any is trained."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel

from hf_distill.data.loading import Splits, reorder_labels
from hf_distill.models.adapters import with_adapter
from hf_distill.models.sources import first_line, source_options
from hf_distill.models.students import model_from_checkpoint, model_from_config, set_labels, student_from_teacher
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.preprocessing import Section
from hf_distill.runs.recipe.schema import FromTeacher, Recipe, Student, Teacher
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.runs.shared_targets import SharedTargets
from hf_distill.teachers.labels import align_labels, names_in_order
from hf_distill.teachers.loading import load_teacher
from hf_distill.teachers.placement import check_placement
from hf_distill.teachers.specialists import Specialist, specialist_columns
from hf_distill.training.config import DistillationConfig


@dataclass(frozen=True)
class Member:
    """A teacher that is ready to teach.

    Attributes:
        section: what the recipe says of it.
        model: None for a column of the data, and for soft targets that others have shared.
        source: the id or folder that it was loaded from.
        seconds: of its training, None if it came ready.
        cached_in: the folder of its cached soft targets, which teach in its place.
    """

    section: Section
    model: PreTrainedModel | None
    source: str | None
    seconds: float | None
    cached_in: Path | None = None


class ModelBuilder:
    """Builds the teachers and students of a run."""

    def __init__(
        self, recipe: Recipe, splits: Splits, settings: StageSettings, shared: SharedTargets | None = None
    ) -> None:
        self.recipe = recipe
        self.splits = splits
        self._settings = settings
        self._ready: dict[int, PreTrainedModel] = {}  # teachers that were loaded by the dry build, by their section
        self._shared = shared

    def dry_build(self) -> list[tuple[Section, PreTrainedModel]]:
        """Build the models once, to see that they can be, before any is trained and anything is written.

        Those made from a config or of layers get no memory for weights; a ready teacher is loaded, and stays so.
        """
        built: list[tuple[Section, PreTrainedModel]] = []
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # what there is to warn of is told when they are built for good
        try:
            members = []
            for section in self.recipe.teachers:
                model: Any = None
                if section.training is not None:
                    model = self._dry(section, None)
                elif section.model is not None:
                    model = self._ready[id(section)] = self._loaded_teacher(section)
                self._check_teacher(section, model)
                built += [] if model is None else [(section, model)]
                members.append(Member(section, model, None, None))
            for stage, student in self.recipe.student_stages().items():
                args = self._settings.of(stage)
                if members[0].model is not None:
                    check_placement(
                        args.teacher_placement,
                        args.teacher_quantization,
                        num_processes=PartialState().num_processes,
                        is_named=True,
                    )
                members = [Member(student, self._dry(student, members[0].model), None, None)]
                assert members[0].model is not None
                built.append((student, members[0].model))
        finally:
            transformers.logging.set_verbosity(verbosity)
        return built

    def _dry(self, section: Section, teacher: Any) -> PreTrainedModel:
        """Build a model that will be trained, without memory for its weights unless it has them from a checkpoint."""
        if section.model is not None:
            return self._seen_with_adapter(section, self.new_model(section))
        model = build_on_meta(section, self.recipe, self.splits.label_names, teacher)
        set_labels(model.config, self.splits.label_names)
        return self._seen_with_adapter(section, model)

    def _seen_with_adapter(self, section: Section, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model, after a look at whether a copy of it takes the adapter that is wanted."""
        if isinstance(section, Student) and section.peft is not None:
            with_adapter(copy.deepcopy(model), section.peft, self.recipe.task)
        return model

    def _check_teacher(self, section: Teacher, model: PreTrainedModel | None) -> None:
        """Raise ValueError if a teacher has nothing to say of the data's labels; of several, say which one."""
        count = len(self.recipe.teachers)
        try:
            if section.column is not None:
                self._check_column(section.column)
            elif model is not None:
                self._check_labels(section, model)
        except ValueError as error:
            if count == 1:
                raise
            place = next(i for i, teacher in enumerate(self.recipe.teachers) if teacher is section)
            raise ValueError(f"teacher {place + 1} of {count}: {error}") from error

    def _check_column(self, column: str) -> None:
        named, num_labels = self.splits.named(), len(self.splits.label_names)
        num_dimensions = 2 if self.recipe.task == "token-classification" else 1
        for role, rows in named.items():
            if column not in rows.column_names:
                raise ValueError(
                    f"teacher.column: the {role} split has no column {column}: every split needs it, that of the "
                    "results too"
                )
            first = next((row[column] for row in rows.select_columns(column) if row[column] is not None), None)
            if first is None:
                raise ValueError(f"teacher.column: no row of the {role} split has {column}")
            shape = np.shape(first)
            if len(shape) != num_dimensions or shape[-1] != num_labels:
                expected = f"{num_labels} numbers in a row" if num_dimensions == 1 else f"{num_labels} for each token"
                raise ValueError(
                    f"teacher.column: {column} of the {role} split has the shape {shape} in a row, expected "
                    f"{expected}, in the order {', '.join(self.splits.label_names)}"
                )

    def _check_labels(self, section: Teacher, model: PreTrainedModel) -> None:
        names, problem_type = names_in_order(model.config.id2label), model.config.problem_type
        if problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"the problem_type of {section.model} is {problem_type}, and a recipe's is "
                "single_label_classification: distill it in Python, with DistillationTrainer"
            )
        if section.specialist is not None:
            specialist_columns(names, self.splits.label_names, section.specialist.dustbin)
            return
        label_map = self.recipe.training.get("teacher_label_map")
        if len(self.recipe.teachers) > 1 and {n.casefold() for n in names} == {
            n.casefold() for n in self.splits.label_names
        }:
            label_map = None  # the map is for the others
        align_labels(names, self.splits.label_names, label_map)

    def ready_teacher(self, section: Teacher) -> PreTrainedModel | None:
        """Return a teacher that is ready; a column of the data is no model, nor are soft targets."""
        return self._ready.pop(id(section), None) or (None if section.model is None else self._loaded_teacher(section))

    def _loaded_teacher(self, section: Teacher) -> PreTrainedModel:
        assert section.model is not None
        return load_teacher(
            section.model,
            self.recipe.task,
            dtype=self.recipe.training.get("teacher_dtype"),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            allow_untrained=self.recipe.training.get("allow_untrained_teacher", False),
        )

    def student(self, section: Student, members: Sequence[Member]) -> PreTrainedModel:
        """Build an untrained student."""
        if section.from_teacher is None:
            return self.new_model(section)
        student = made_of_layers(self.model_of(members[0]), section.from_teacher)
        set_labels(student.config, self.splits.label_names)
        return student

    def model_of(self, member: Member) -> PreTrainedModel:
        """Return a teacher's model, loaded again if it was released."""
        if member.model is not None:
            return member.model
        section = member.section
        assert isinstance(section, Teacher)  # the recipe is refused
        assert member.source is not None
        ready = None if section.training is not None else self.ready_teacher(section)
        return ready or self.saved_model(member.source, section)

    def saved_model(self, folder: str | Path, section: Section) -> PreTrainedModel:
        """Load a model that this run has trained and saved, with the code that came with it."""
        options = source_options(str(folder), None, self.recipe.trusts_code_of(section))
        return AUTO_CLASSES[self.recipe.task].from_pretrained(str(folder), dtype=torch.float32, **options)

    def new_model(self, section: Section) -> PreTrainedModel:
        """Load or build a model that will be trained."""
        if section.config is not None:
            return model_from_config(section.config, self.recipe.task, self.splits.label_names)
        assert section.model is not None
        return model_from_checkpoint(
            section.model,
            self.recipe.task,
            self.splits.label_names,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            new_head=section.new_head,
        )

    def for_trainer(self, members: Sequence[Member], args: DistillationConfig) -> Any:
        """Return the teachers as the trainer takes them."""
        if members[0].cached_in is not None:
            args.precompute_teacher_logits, args.teacher_logits_dir = True, str(members[0].cached_in)
            if self._shared is not None and args.teacher_logits_views is None and self.recipe.data.augment is not None:
                args.teacher_logits_views = self._shared.views
            return None
        if members[0].model is None:
            return None
        if args.teacher_quantization is not None and len(members) == 1:
            args.teacher_revision = members[0].section.revision
            args.teacher_trust_remote_code = self.recipe.trusts_code_of(members[0].section)
        return [self._one_for_trainer(member, args) for member in members]

    def _one_for_trainer(self, member: Member, args: DistillationConfig) -> Any:
        # The trainer converts and moves a teacher in place, and a student or a baseline may be made of it later.
        is_changed = args.teacher_dtype is not None or args.teacher_placement in ("auto", "sharded")
        model: Any = copy.deepcopy(member.model) if is_changed else member.model
        if args.teacher_quantization is not None:
            model = member.source
        specialist = member.section.specialist if isinstance(member.section, Teacher) else None
        if specialist is None:
            return model
        return Specialist(model, oversampling=specialist.oversampling, dustbin=specialist.dustbin)


def made_of_layers(teacher: PreTrainedModel, chosen: FromTeacher) -> PreTrainedModel:
    """Build a student of the layers that a recipe names."""
    strategy = chosen.strategy or "uniform"
    return student_from_teacher(teacher, chosen.layers, num_layers=chosen.num_layers, strategy=strategy)


def build_on_meta(section: Section, recipe: Recipe, label_names: Sequence[str], teacher: Any) -> PreTrainedModel:
    """Build a model of a config, or of a teacher's layers, without memory for its weights.

    Raises:
        ValueError: it cannot be built.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that copying weights between models without weights does nothing
        if isinstance(section, Student) and section.from_teacher is not None:
            return made_of_layers(teacher, section.from_teacher)
        assert section.config is not None
        return model_from_config(section.config, recipe.task, label_names)


def in_the_students_order(recipe: Recipe, splits: Splits) -> Splits:
    """Number the classes as a student does that takes its head from a ready teacher."""
    teacher = recipe.teachers[0]
    if recipe.students[0].from_teacher is None or teacher.training is not None:
        return splits
    assert teacher.model is not None  # the recipe is refused
    try:
        options = source_options(teacher.model, teacher.revision, teacher.trust_remote_code)
        config = AutoConfig.from_pretrained(teacher.model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load the teacher {teacher.model!r}: {first_line(error)}") from error
    label_map = recipe.training.get("teacher_label_map")
    align_labels(names_in_order(config.id2label), splits.label_names, label_map)  # its errors say which side is which
    back = None if label_map is None else {theirs: ours for ours, theirs in label_map.items()}
    order = align_labels(splits.label_names, names_in_order(config.id2label), back)
    return splits if order is None else reorder_labels(splits, order)


def column_of(member: Member) -> str | None:
    """Return the column of the data that a teacher is, None if it is a model."""
    return member.section.column if isinstance(member.section, Teacher) else None
