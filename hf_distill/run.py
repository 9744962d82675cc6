"""Join the parts: a recipe goes in, a teacher, a student, a baseline and their results come out."""

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback, set_seed

from hf_distill.casting import Cast, Member, column_of, in_the_students_order, is_specialist
from hf_distill.config import DistillationConfig
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits, fingerprint, load_rows, prepare_splits
from hf_distill.environment import environment
from hf_distill.evaluation.measuring import Metrics, agreement, of_the_same
from hf_distill.evaluation.results import ModelResult, Results, curve, gap_closed
from hf_distill.inputs import Inputs, Section
from hf_distill.lineage import NOWHERE, data_origin, model_origin
from hf_distill.models.auto import AUTO_CLASSES
from hf_distill.publishing.curves import PLOT
from hf_distill.publishing.hub import Published, check_destination, publish
from hf_distill.publishing.repository import Destination
from hf_distill.publishing.run_card import card_of, licence_in, write_card
from hf_distill.recipe import Augment, Hub, Recipe, Student, Teacher
from hf_distill.settings import NOT_TRAINING, arguments
from hf_distill.trainer import DistillationTrainer
from hf_distill.workspace import Checkpoint, Workspace, write_whole


def distill(recipe: Recipe, name: str, *, overwrite: bool = False) -> Results:
    """Run a recipe: teacher, student, baseline, results.

    What is finished in the output folder is kept, and a stage that was stopped goes on at its last checkpoint, with
    the same final weights as if it had not been. If the student is to be published (`publish_student`, afterwards), it
    is found out first whether that is possible.

    Args:
        recipe: what to do.
        name: the recipe's name, for the results.
        overwrite: delete a run with other settings in the same output folder.

    Raises:
        ValueError: something in the data, the models or the output folder is not as it should be, or the student could
            not be published.
    """
    folder = Path(recipe.output_dir).expanduser()
    _ = arguments(recipe, "student", folder).device  # settles on which devices, before any process waits for another
    if recipe.hub is not None and PartialState().is_main_process:
        check_destination(_destination(recipe.hub))
    with _held(folder, recipe, overwrite) as workspace:
        data = recipe.data
        rows = load_rows(dataset=data.dataset, name=data.name, revision=data.revision, path=data.path)
        splits = prepare_splits(
            rows,
            recipe.task,
            seed=int(recipe.training.get("seed", 42)),
            **data.model_dump(exclude={"dataset", "name", "revision", "path", "max_length", "augment", "processor"}),
        )
        splits = in_the_students_order(recipe, splits)
        metrics = Metrics(recipe.metrics, splits.label_names)
        with PartialState().main_process_first():
            inputs = Inputs(recipe, splits)
        origin = data_origin(data.dataset, data.revision, rows)
        return _Run(recipe, name, workspace, splits, inputs, metrics, origin).results()


def publish_student(recipe: Recipe) -> Published | None:
    """Publish the student of a finished run where its recipe says; None if it says nothing.

    Raises:
        ValueError: it was not published, and why; the run is whole, and the message has the command that tries again.
    """
    if recipe.hub is None:
        return None
    folder, to = Path(recipe.output_dir).expanduser(), _destination(recipe.hub)
    try:
        return publish(folder, to)
    except ValueError as error:
        command = shlex.join(["hf-distill", "push", str(folder), *to.options()])
        raise ValueError(f"{error}\nthe run is whole, and was not published; to try that again: {command}") from error


def _destination(hub: Hub) -> Destination:
    return Destination(hub.repo_id, private=hub.private, revision=hub.revision, create_pr=hub.create_pr)


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
        origin: dict[str, Any],
    ) -> None:
        self.recipe = recipe
        self.name = name
        self.workspace = workspace
        self.splits = splits
        self.cast = Cast(recipe, splits)
        self.inputs = inputs
        self.metrics = metrics
        self._data_origin = origin
        self._origins: dict[int, dict[str, Any]] = {}  # by the section of the recipe
        self._curves: dict[str, list[dict[str, float]]] = {}  # by the stage

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
        self.cast.rehearse()
        if PartialState().is_main_process:
            self.workspace.begin(fingerprint(self.splits, self.recipe.teachers[0].column))
        PartialState().wait_for_everyone()
        members = self._members()
        judged, answered = self._judged(members)
        teacher_logits = judged.popitem()[1]  # all of them together come last
        teacher = self._measured(
            [member.model for member in members], teacher_logits, answered, _total_seconds(members)
        )
        generalists = [place for place, member in enumerate(members) if not is_specialist(member)]
        each = {
            f"teacher-{place + 1}": self._measured([members[place].model], logits, answered, members[place].seconds)
            for place, logits in zip(generalists, judged.values(), strict=False)  # one alone is not judged apart
        }
        students: dict[str, ModelResult] = {}
        for stage, section in self.recipe.student_stages().items():
            build = partial(self.cast.student, section, members)
            model, seconds = self._trained(stage, section, build, members)
            logits, labels = self._predict(model, section)
            students[stage] = self._measured([model], logits, labels, seconds)
            if stage != "student":
                members = [Member(section, model, str(self.workspace.model_folder(stage)), seconds)]
        student = students.pop("student")
        baseline = None
        if self.recipe.baseline:
            section = self.recipe.student
            simple, seconds = self._trained("baseline", section, partial(self.cast.student, section, members), [])
            baseline = self._measured([simple], self._predict(simple, section)[0], labels, seconds)
        first = next(iter(teacher.metrics))
        results = Results(
            task=self.recipe.task,
            recipe=self.name,
            teacher=teacher,
            student=student,
            baseline=baseline,
            agreement=agreement(*of_the_same(logits, labels, teacher_logits, answered)),
            gap_closed=None
            if baseline is None
            else gap_closed(*(model.metrics[first] for model in (teacher, student, baseline))),
            environment=environment(),
            data=facts,
            teachers=each,
            stages=students,
            lineage=self._lineage(model),
            curves=self._curves,
        )
        if PartialState().is_main_process:
            folder = self.workspace.model_folder("student")
            readme = folder / "README.md"
            write_card(card_of(self.recipe, results, license=licence_in(readme)), readme, folder / PLOT)
            self.workspace.write_results(results.to_json())
        return results

    # ---- Models ----

    def _members(self) -> list[Member]:
        """Return the teachers, trained first if the recipe says so."""
        stages = {id(section): stage for stage, section in self.recipe.teacher_stages().items()}
        members = []
        for section in self.recipe.teachers:
            stage = stages.get(id(section))
            if stage is None:
                members.append(Member(section, self.cast.ready_teacher(section), section.model, None))
                self._note_origin(section, [])
            else:
                model, seconds = self._trained(stage, section, partial(self.cast.new_model, section), [])
                members.append(Member(section, model, str(self.workspace.model_folder(stage)), seconds))
        return members

    # ---- Training ----

    def _trained(
        self, stage: str, section: Section, build: Callable[[], PreTrainedModel], members: Sequence[Member]
    ) -> tuple[PreTrainedModel, float]:
        """Return a stage's trained model and the seconds that it took, trained now or before."""
        record = self.workspace.record(stage)
        if record is not None:
            self._origins.setdefault(id(section), record.get("origin", NOWHERE))
            self._curves[stage] = curve(record["log_history"])
            return self._load(self.workspace.model_folder(stage)), record["train_seconds"]
        args = arguments(self.recipe, stage, self.workspace.checkpoints(stage))
        set_seed(args.seed)
        model = build()
        self._note_origin(section, members)
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
        self._curves[stage] = curve(history)

        def save(folder: Path) -> None:
            trainer.save_model(str(folder))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths in it

        PartialState().wait_for_everyone()  # until no one writes into the checkpoints that are dropped now
        if PartialState().is_main_process:
            record = {"train_seconds": seconds, "log_history": history, "origin": self._origins[id(section)]}
            self.workspace.finish(stage, save, record)
        else:
            trainer.save_model(str(self.workspace.path))  # writes nothing, but gathers weights that are sharded
        PartialState().wait_for_everyone()
        return model, seconds

    def _trainer(
        self,
        section: Section,
        model: PreTrainedModel,
        members: Sequence[Member],
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
            teacher=self.cast.at_work(members, args) if is_taught else None,
            args=args,
            processing_class=reader.processor,
            teacher_processing_class=processors,
            **{"data_collator": reader.collator, **arguments},
        )

    def _rows(
        self,
        section: Section,
        role: str,
        members: Sequence[Member] = (),
        augment: Augment | None = None,
        args: DistillationConfig | None = None,
    ) -> Any:
        readers = [self.inputs.reader(member.section) for member in members if member.model is not None]
        seed = 42 if args is None else args.seed
        column = next((name for name in map(column_of, members) if name is not None), None)
        return self.inputs.rows(
            self.inputs.reader(section), role, augment=augment, seed=seed, teachers=readers, soft_targets=column
        )

    def _load(self, folder: Path) -> PreTrainedModel:
        return AUTO_CLASSES[self.recipe.task].from_pretrained(str(folder), dtype=torch.float32)

    # ---- Where it all comes from ----

    def _note_origin(self, section: Section, members: Sequence[Member]) -> None:
        """Remember where a model comes from that has just been built; a baseline comes from where its student does."""
        if id(section) in self._origins:
            return
        if isinstance(section, Student) and section.from_teacher is not None:
            self._origins[id(section)] = self._origins[id(members[0].section)]
        elif PartialState().is_main_process:  # the others write nothing
            self._origins[id(section)] = model_origin(section.model, section.revision)
        else:
            self._origins[id(section)] = dict(NOWHERE)

    def _lineage(self, student: PreTrainedModel) -> dict[str, Any]:
        seeds = {
            id(section): arguments(self.recipe, stage, self.workspace.checkpoints(stage)).seed
            for stage, section in {**self.recipe.teacher_stages(), **self.recipe.student_stages()}.items()
        }

        def entry(section: Section) -> dict[str, Any]:
            return {**self._origins[id(section)], "seed": seeds.get(id(section))}

        return {
            "teachers": [entry(section) for section in self.recipe.teachers],
            "stages": [entry(section) for section in self.recipe.stages],
            "student": {**entry(self.recipe.student), "model_type": student.config.model_type},
            "dataset": self._data_origin,
        }

    # ---- Results ----

    def _judged(self, members: Sequence[Member]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the logits of each teacher and, last, of all together, for the rows judged on; and their labels.

        A label is -100 where it is missing, and where the teacher has no answer.
        """
        stage, section = next(iter(self.recipe.student_stages().items()))
        args = arguments(self.recipe, stage, self.workspace.checkpoints(stage), **NOT_TRAINING)
        rows = self._rows(section, self.inputs.judged_role, members)
        trainer = self._trainer(section, self.cast.student(section, members), members, args, eval_dataset=rows)
        logits, labels = trainer.predict_with_teacher(rows)
        assert labels is not None  # data whose rows to judge on have no label are refused
        return logits, labels

    def _predict(self, model: PreTrainedModel, section: Section) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's logits, and the labels of the rows judged on."""
        # A stage without a teacher: nothing is trained, saved or smoothed here.
        args = arguments(self.recipe, "baseline", self.workspace.checkpoints("student"), **NOT_TRAINING)
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
        judged_labels = judged.with_format(None)["labels"]
        is_image = not self.recipe.is_text
        return {
            "num_train_rows": len(self.splits.train),
            "num_eval_rows": len(judged),
            "num_eval_labels": sum(int(np.sum(np.asarray(row) != MISSING_LABEL)) for row in judged_labels),
            "unlabelled_share": sum(missing) / len(missing),
            "label_names": list(self.splits.label_names),
            "inputs": list(self.splits.columns.inputs),
            **({"num_channels": self.inputs.reader(self.recipe.student).num_channels} if is_image else {}),
        }


def _total_seconds(members: Sequence[Member]) -> float | None:
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
            write_whole(file, json.dumps(self._total))

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


def _best(checkpoint: Checkpoint, args: DistillationConfig) -> Path:
    best = checkpoint.state.get("best_model_checkpoint")
    return Path(best) if args.load_best_model_at_end and best else checkpoint.path


def _collated(collator: Callable[[list], Any], dtype: torch.dtype, rows: list) -> dict[str, torch.Tensor]:
    """Make a batch whose images have the type of a model's weights: not every model converts them itself."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in collator(rows).items()}
