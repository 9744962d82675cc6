"""Join the parts: a recipe goes in, a teacher, a student, a baseline and their results come out."""

import contextlib
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, TrainerCallback, set_seed

import hf_distill
from hf_distill.config import DistillationConfig
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits, fingerprint, load_rows, prepare_splits, reorder_labels
from hf_distill.evaluation.measuring import Metrics, agreement
from hf_distill.evaluation.results import ModelResult, Results, gap_closed
from hf_distill.inputs import Inputs, Section
from hf_distill.models.auto import AUTO_CLASSES
from hf_distill.problems import OF_DISTILLATION, OF_THE_FIRST_TEACHERS
from hf_distill.publishing.model_card import model_card
from hf_distill.recipe import Augment, Recipe, Stage, Student, Teacher, command_for
from hf_distill.students.building import model_from_checkpoint, model_from_config, set_labels, student_from_teacher
from hf_distill.teachers.label_space import align_labels, names_in_order
from hf_distill.teachers.loading import first_line, load_teacher
from hf_distill.teachers.placement import check_placement
from hf_distill.teachers.specialists import Specialist, specialist_columns
from hf_distill.trainer import DistillationTrainer
from hf_distill.workspace import Checkpoint, Workspace


def distill(recipe: Recipe, name: str, *, overwrite: bool = False) -> Results:
    """Run a recipe: teacher, student, baseline, results.

    What is finished in the output folder is kept, and a stage that was stopped goes on at its last checkpoint, with
    the same final weights as if it had not been.

    Args:
        recipe: what to do.
        name: the recipe's name, for the results.
        overwrite: delete a run with other settings in the same output folder.

    Raises:
        ValueError: something in the data, the models or the output folder is not as it should be.
    """
    folder = Path(recipe.output_dir).expanduser()
    _ = _arguments(recipe, "student", folder).device  # settles on which devices, before any process waits for another
    with _held(folder, recipe, overwrite) as workspace:
        data = recipe.data
        rows = load_rows(dataset=data.dataset, name=data.name, revision=data.revision, path=data.path)
        splits = prepare_splits(
            rows,
            recipe.task,
            seed=int(recipe.training.get("seed", 42)),
            **data.model_dump(exclude={"dataset", "name", "revision", "path", "max_length", "augment", "processor"}),
        )
        splits = _in_the_students_order(recipe, splits)
        metrics = Metrics(recipe.metrics, splits.label_names)
        with PartialState().main_process_first():
            inputs = Inputs(recipe, splits)
        return _Run(recipe, name, workspace, splits, inputs, metrics).results()


@dataclass(frozen=True)
class _Member:
    """A teacher that is ready to teach.

    Attributes:
        section: what the recipe says of it.
        model: None for a column of the data.
        source: the id or folder that it was loaded from.
        seconds: of its training, None if it came ready.
    """

    section: Section
    model: PreTrainedModel | None
    source: str | None
    seconds: float | None


class _Run:
    """One run, with all that its stages share."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        workspace: Workspace,
        splits: Splits,
        inputs: Inputs,
        metrics: Metrics,
    ) -> None:
        self.recipe = recipe
        self.name = name
        self.workspace = workspace
        self.splits = splits
        self.inputs = inputs
        self.metrics = metrics

    def results(self) -> Results:
        """Go through the stages, write results.json and the card."""
        facts = self._data_facts()
        if facts["unlabelled_share"] == 1 and (
            self.recipe.baseline or any(teacher.training is not None for teacher in self.recipe.teachers)
        ):
            raise ValueError(
                "no row of the train split has a label: the teacher must be a ready one (no teacher.training), and "
                "there is nothing to train a baseline on (baseline: false)"
            )
        self._rehearse()
        if PartialState().is_main_process:
            self.workspace.begin(fingerprint(self.splits, self.recipe.teachers[0].column))
        PartialState().wait_for_everyone()
        members = self._members()
        judged, answered = self._judged(members)
        teacher_logits = judged.popitem()[1]  # all of them together come last
        teacher = self._measured(
            [member.model for member in members], teacher_logits, answered, _total_seconds(members)
        )
        generalists = [place for place, member in enumerate(members) if not _is_specialist(member)]
        each = {
            f"teacher-{place + 1}": self._measured([members[place].model], logits, answered, members[place].seconds)
            for place, logits in zip(generalists, judged.values(), strict=False)  # one alone is not judged apart
        }
        students: dict[str, ModelResult] = {}
        for stage, section in self.recipe.student_stages().items():
            build = partial(self._student, section, members)
            model, seconds = self._trained(stage, section, build, members)
            logits, labels = self._predict(model, section)
            students[stage] = self._measured([model], logits, labels, seconds)
            if stage != "student":
                members = [_Member(section, model, str(self.workspace.model_folder(stage)), seconds)]
        student = students.pop("student")
        baseline = None
        if self.recipe.baseline:
            section = self.recipe.student
            simple, seconds = self._trained("baseline", section, partial(self._student, section, members), [])
            baseline = self._measured([simple], self._predict(simple, section)[0], labels, seconds)
        first = next(iter(teacher.metrics))
        results = Results(
            task=self.recipe.task,
            recipe=self.name,
            teacher=teacher,
            student=student,
            baseline=baseline,
            agreement=agreement(*_of_the_same(logits, labels, teacher_logits, answered)),
            gap_closed=None
            if baseline is None
            else gap_closed(*(model.metrics[first] for model in (teacher, student, baseline))),
            environment=environment(),
            data=facts,
            teachers=each,
            stages=students,
        )
        if PartialState().is_main_process:
            card = model_card(self.recipe.model_dump(), results, command_for(self.recipe, self.name))
            card.save(self.workspace.model_folder("student") / "README.md")
            self.workspace.write_results(results.to_json())
        return results

    # ---- Models ----

    def _rehearse(self) -> None:
        """Build the models once, so that a mistake in one shows before another is trained and anything is written."""
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # what there is to say is said when they are built for good
        try:
            members = []
            for section in self.recipe.teachers:
                model = self._new_model(section) if section.training is not None else self._ready_teacher(section)
                self._check_teacher(section, model)
                members.append(_Member(section, model, None, None))
            for stage, student in self.recipe.student_stages().items():
                args = _arguments(self.recipe, stage, self.workspace.checkpoints(stage))
                if members[0].model is not None:
                    check_placement(
                        args.teacher_placement,
                        args.teacher_quantization,
                        num_processes=PartialState().num_processes,
                        is_named=True,
                    )
                members = [_Member(student, self._student(student, members), None, None)]
        finally:
            transformers.logging.set_verbosity(verbosity)

    def _check_teacher(self, section: Teacher, model: PreTrainedModel | None) -> None:
        """Raise ValueError if a teacher has nothing to say of the data's labels; of several, say which one."""
        count = len(self.recipe.teachers)
        try:
            if model is None:
                self._check_column(str(section.column))
            else:
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

    def _members(self) -> list[_Member]:
        """Return the teachers, trained first if the recipe says so."""
        stages = {id(section): stage for stage, section in self.recipe.teacher_stages().items()}
        members = []
        for section in self.recipe.teachers:
            stage = stages.get(id(section))
            if stage is None:
                members.append(_Member(section, self._ready_teacher(section), section.model, None))
            else:
                model, seconds = self._trained(stage, section, partial(self._new_model, section), [])
                members.append(_Member(section, model, str(self.workspace.model_folder(stage)), seconds))
        return members

    def _ready_teacher(self, section: Teacher) -> PreTrainedModel | None:
        if section.model is None:
            return None
        return load_teacher(
            section.model,
            self.recipe.task,
            dtype=self.recipe.training.get("teacher_dtype"),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            allow_untrained=self.recipe.training.get("allow_untrained_teacher", False),
        )

    def _student(self, section: Student, members: Sequence[_Member]) -> PreTrainedModel:
        if section.from_teacher is None:
            return self._new_model(section)
        teacher = members[0].model
        assert teacher is not None  # the recipe is refused
        student = student_from_teacher(teacher, section.from_teacher.layers)
        set_labels(student.config, self.splits.label_names)
        return student

    def _new_model(self, section: Section) -> PreTrainedModel:
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

    def _at_work(self, members: Sequence[_Member], args: DistillationConfig) -> Any:
        """Return the teachers as the trainer takes them."""
        if members[0].model is None:
            return None
        if args.teacher_quantization is not None and len(members) == 1:
            args.teacher_revision = getattr(members[0].section, "revision", None)
        return [self._one_at_work(member, args) for member in members]

    def _one_at_work(self, member: _Member, args: DistillationConfig) -> Any:
        # The trainer converts and moves a teacher in place, and a student or a baseline may be made of it later.
        is_changed = args.teacher_dtype is not None or args.teacher_placement in ("auto", "sharded")
        model: Any = copy.deepcopy(member.model) if is_changed else member.model
        if args.teacher_quantization is not None:
            model = member.source
        specialist = member.section.specialist if isinstance(member.section, Teacher) else None
        if specialist is None:
            return model
        return Specialist(model, oversampling=specialist.oversampling, dustbin=specialist.dustbin)

    # ---- Training ----

    def _trained(
        self, stage: str, section: Section, build: Callable[[], PreTrainedModel], members: Sequence[_Member]
    ) -> tuple[PreTrainedModel, float]:
        """Return a stage's trained model and the seconds that it took, trained now or before."""
        record = self.workspace.record(stage)
        if record is not None:
            return self._load(self.workspace.model_folder(stage)), record["train_seconds"]
        args = _arguments(self.recipe, stage, self.workspace.checkpoints(stage))
        set_seed(args.seed)
        model = build()
        checkpoint = self.workspace.last_checkpoint(stage)
        clock = _Clock(0.0 if checkpoint is None else checkpoint.seconds)
        augment = self.recipe.data.augment
        if isinstance(section, Teacher) and section.augment is not None:
            augment = section.augment
        trainer = self._trainer(
            section,
            model,
            members,
            args,
            train_dataset=self._rows(section, "train", members, augment, args),
            eval_dataset=self._rows(section, "evaluation", members),
            compute_metrics=lambda prediction: self.metrics(prediction.predictions, prediction.label_ids),
            callbacks=[clock],
        )
        if checkpoint is not None and checkpoint.is_last:
            # Trained to the end, but not saved: `train` would go one step too far.
            saved = self._load(_best(checkpoint, args))
            model.load_state_dict(saved.state_dict())
            model.config = saved.config
            history = checkpoint.state["log_history"]
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
            history = trainer.state.log_history
        seconds = round(clock.seconds(), 3)

        def save(folder: Path) -> None:
            trainer.save_model(str(folder))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths in it

        if PartialState().is_main_process:
            self.workspace.finish(stage, save, {"train_seconds": seconds, "log_history": history})
        else:
            trainer.save_model(str(self.workspace.path))  # writes nothing, but gathers weights that are sharded
        PartialState().wait_for_everyone()
        return model, seconds

    def _trainer(
        self,
        section: Section,
        model: PreTrainedModel,
        members: Sequence[_Member],
        args: DistillationConfig,
        **arguments: Any,
    ) -> DistillationTrainer:
        reader = self.inputs.reader(section)
        is_taught = bool(members)
        processors = None
        if is_taught and members[0].model is not None:
            processors = [self.inputs.reader(member.section).processor for member in members]
            args.teacher_input_columns = list(self.splits.columns.inputs)
            args.teacher_max_length = self.recipe.data.max_length
        return DistillationTrainer(
            model=model,
            teacher=self._at_work(members, args) if is_taught else None,
            args=args,
            processing_class=reader.processor,
            teacher_processing_class=processors,
            **{"data_collator": reader.collator, **arguments},
        )

    def _rows(
        self,
        section: Section,
        role: str,
        members: Sequence[_Member] = (),
        augment: Augment | None = None,
        args: DistillationConfig | None = None,
    ) -> Any:
        readers = [self.inputs.reader(member.section) for member in members if member.model is not None]
        seed = 42 if args is None else args.seed
        column = next((name for name in map(_column_of, members) if name is not None), None)
        return self.inputs.rows(
            self.inputs.reader(section), role, augment=augment, seed=seed, teachers=readers, soft_targets=column
        )

    def _load(self, folder: Path) -> PreTrainedModel:
        return AUTO_CLASSES[self.recipe.task].from_pretrained(str(folder), dtype=torch.float32)

    # ---- Results ----

    def _judged(self, members: Sequence[_Member]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the logits of each teacher and, last, of all together, for the rows judged on; and their labels.

        A label is -100 where it is missing, and where the teacher has no answer.
        """
        stage, section = next(iter(self.recipe.student_stages().items()))
        args = _arguments(self.recipe, stage, self.workspace.checkpoints(stage), **_NOT_TRAINING)
        rows = self._rows(section, self.inputs.judged_role, members)
        trainer = self._trainer(section, self._student(section, members), members, args, eval_dataset=rows)
        logits, labels = trainer.predict_with_teacher(rows)
        assert labels is not None  # data whose rows to judge on have no label are refused
        return logits, labels

    def _predict(self, model: PreTrainedModel, section: Section) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's logits, and the labels of the rows judged on."""
        # A stage without a teacher: nothing is trained, saved or smoothed here.
        args = _arguments(self.recipe, "baseline", self.workspace.checkpoints("student"), **_NOT_TRAINING)
        collator = partial(_collated, self.inputs.reader(section).collator, model.dtype)
        trainer = self._trainer(section, model, [], args, data_collator=collator)
        prediction = trainer.predict(self._rows(section, self.inputs.judged_role))
        return prediction.predictions, prediction.label_ids

    def _measured(
        self, models: Sequence[PreTrainedModel | None], logits: np.ndarray, labels: np.ndarray, seconds: float | None
    ) -> ModelResult:
        parameters = [parameter for model in models if model is not None for parameter in model.parameters()]
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        is_model = None not in models
        return ModelResult(
            metrics=self.metrics(logits, labels),
            num_parameters=sum(parameter.numel() for parameter in parameters) if is_model else None,
            size_mib=round(size / 2**20, 3) if is_model else None,
            train_seconds=seconds,
        )

    def _data_facts(self) -> dict[str, Any]:
        labels = self.splits.train.with_format("numpy")[:]["labels"]
        missing = [bool(np.all(np.asarray(row) == MISSING_LABEL)) for row in labels]
        judged = self.splits.evaluation if self.splits.test is None else self.splits.test
        return {
            "num_train_rows": len(self.splits.train),
            "num_eval_rows": len(judged),
            "unlabelled_share": sum(missing) / len(missing),
            "label_names": list(self.splits.label_names),
        }


def _in_the_students_order(recipe: Recipe, splits: Splits) -> Splits:
    """Number the classes as a student does that takes its head from a ready teacher."""
    teacher = recipe.teachers[0]
    if recipe.students[0].from_teacher is None or teacher.training is not None:
        return splits
    try:
        config = AutoConfig.from_pretrained(
            teacher.model, revision=teacher.revision or "main", trust_remote_code=teacher.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the teacher {teacher.model!r}: {first_line(error)}") from error
    label_map = recipe.training.get("teacher_label_map")
    align_labels(names_in_order(config.id2label), splits.label_names, label_map)  # its errors say which side is which
    back = None if label_map is None else {theirs: ours for ours, theirs in label_map.items()}
    order = align_labels(splits.label_names, names_in_order(config.id2label), back)
    return splits if order is None else reorder_labels(splits, order)


def _arguments(recipe: Recipe, stage: str, folder: Path, **fixed: Any) -> DistillationConfig:
    """Return a stage's settings: defaults, what the recipe says, and what is `fixed`."""
    settings: dict[str, Any] = {"save_total_limit": 1}
    if recipe.is_text:
        settings["train_sampling_strategy"] = "group_by_length"
    sections: dict[str, Any] = {**recipe.teacher_stages(), **recipe.student_stages()}
    section = sections.get(stage)
    chosen = dict(section.training or {}) if isinstance(section, Teacher) else dict(recipe.training)
    if isinstance(section, Stage):
        chosen |= section.training
    if isinstance(section, Student) and section is not recipe.students[0]:  # its teacher is the student before it
        chosen = {name: value for name, value in chosen.items() if name not in OF_THE_FIRST_TEACHERS}
    if not isinstance(section, Student):
        chosen = {name: value for name, value in chosen.items() if name not in OF_DISTILLATION} | {"alpha": 1.0}
    return DistillationConfig(**{**settings, **chosen, **fixed, "output_dir": str(folder)})


# For a trainer that predicts; the last two would convert the model for good.
_NOT_TRAINING = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "label_smoothing_factor": 0.0,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
}


def _column_of(member: _Member) -> str | None:
    return member.section.column if isinstance(member.section, Teacher) else None


def _is_specialist(member: _Member) -> bool:
    return isinstance(member.section, Teacher) and member.section.specialist is not None


def _total_seconds(members: Sequence[_Member]) -> float | None:
    known = [member.seconds for member in members if member.seconds is not None]
    return round(sum(known), 3) if known else None


class _Clock(TrainerCallback):
    """Count the seconds of training, over restarts too: each checkpoint notes how long it took to get there."""

    def __init__(self, seconds_before: float) -> None:
        self._before = seconds_before
        self._start: float | None = None
        self._total = seconds_before

    def seconds(self) -> float:
        return self._total

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)
        if state.is_world_process_zero:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "seconds.json"
            file.write_text(json.dumps(self._total))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._start is not None
        self._total = self._before + time.perf_counter() - self._start


@contextlib.contextmanager
def _held(folder: Path, recipe: Recipe, overwrite: bool) -> Any:
    """Open the workspace; of several processes the main one, and the others after it."""
    state = PartialState()
    workspace = Workspace(folder, recipe, overwrite=overwrite) if state.is_main_process else None
    state.wait_for_everyone()
    if workspace is None:
        workspace = Workspace.attached(folder)
    try:
        yield workspace
    finally:
        workspace.release()


def environment() -> dict[str, str]:
    """Return the versions and the hardware that results depend on."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "hf_distill": hf_distill.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "datasets": datasets.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
        "hardware": hardware,
    }


def _of_the_same(
    logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray, answered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what student and teacher say of the same rows, or words, `(count, num_labels)`.

    Their tokens may be others, but the labelled ones are the first of each word in both, in the same order; a row may
    be cut off sooner for one of the two.
    """
    if logits.ndim == 2:
        both = ~((answered == MISSING_LABEL) & (labels != MISSING_LABEL))
        return logits[both], teacher_logits[both]
    of_student, of_teacher = [], []
    for row in range(len(logits)):
        words, same_words = (
            logits[row][labels[row] != MISSING_LABEL],
            teacher_logits[row][answered[row] != MISSING_LABEL],
        )
        count = min(len(words), len(same_words))
        of_student.append(words[:count])
        of_teacher.append(same_words[:count])
    return np.concatenate(of_student), np.concatenate(of_teacher)


def _best(checkpoint: Checkpoint, args: DistillationConfig) -> Path:
    best = checkpoint.state.get("best_model_checkpoint")
    return Path(best) if args.load_best_model_at_end and best else checkpoint.path


def _collated(collator: Callable[[list], Any], dtype: torch.dtype, rows: list) -> dict[str, torch.Tensor]:
    """Make a batch whose images have the type of a model's weights: not every model converts them itself."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in collator(rows).items()}
