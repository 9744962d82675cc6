"""Join the parts: a recipe goes in, a teacher, a student, a baseline and their results come out."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback, set_seed

import hf_distill
from hf_distill.casting import Cast, Member, column_of, in_the_students_order, is_specialist
from hf_distill.config import DistillationConfig
from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits, fingerprint, load_rows, prepare_splits
from hf_distill.evaluation.measuring import Metrics, agreement, of_the_same
from hf_distill.evaluation.results import ModelResult, Results, gap_closed
from hf_distill.inputs import Inputs, Section
from hf_distill.models.auto import AUTO_CLASSES
from hf_distill.publishing.model_card import model_card
from hf_distill.recipe import Augment, Recipe, Teacher, command_for
from hf_distill.settings import NOT_TRAINING, arguments
from hf_distill.trainer import DistillationTrainer
from hf_distill.workspace import Checkpoint, Workspace, write_whole


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
    _ = arguments(recipe, "student", folder).device  # settles on which devices, before any process waits for another
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
        return _Run(recipe, name, workspace, splits, inputs, metrics).results()


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
        self.cast = Cast(recipe, splits)
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
        )
        if PartialState().is_main_process:
            card = model_card(self.recipe.model_dump(), results, command_for(self.recipe, self.name))
            card.save(self.workspace.model_folder("student") / "README.md")
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
            return self._load(self.workspace.model_folder(stage)), record["train_seconds"]
        args = arguments(self.recipe, stage, self.workspace.checkpoints(stage))
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

        PartialState().wait_for_everyone()  # until no one writes into the checkpoints that are dropped now
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
        return {
            "num_train_rows": len(self.splits.train),
            "num_eval_rows": len(judged),
            "unlabelled_share": sum(missing) / len(missing),
            "label_names": list(self.splits.label_names),
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


def _best(checkpoint: Checkpoint, args: DistillationConfig) -> Path:
    best = checkpoint.state.get("best_model_checkpoint")
    return Path(best) if args.load_best_model_at_end and best else checkpoint.path


def _collated(collator: Callable[[list], Any], dtype: torch.dtype, rows: list) -> dict[str, torch.Tensor]:
    """Make a batch whose images have the type of a model's weights: not every model converts them itself."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in collator(rows).items()}
