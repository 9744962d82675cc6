"""Join the parts: a recipe goes in, a teacher, a student, a baseline and their results come out."""

import contextlib
import copy
import json
import os
import platform
import time
from collections.abc import Callable
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
from hf_distill.inputs import Inputs, prepare_inputs
from hf_distill.models.auto import AUTO_CLASSES
from hf_distill.publishing.model_card import model_card
from hf_distill.recipe import Recipe, Student, Teacher, command_for
from hf_distill.students.building import model_from_checkpoint, model_from_config, set_labels, student_from_teacher
from hf_distill.teachers.frozen import check_logits
from hf_distill.teachers.label_space import align_labels, names_in_order
from hf_distill.teachers.loading import first_line, load_teacher
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
            inputs = prepare_inputs(recipe, splits)
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
        self.inputs = inputs
        self.metrics = metrics

    def results(self) -> Results:
        """Go through the stages, write results.json and the card."""
        facts = self._data_facts()
        if facts["unlabelled_share"] == 1 and (self.recipe.baseline or self.recipe.teacher.training is not None):
            raise ValueError(
                "no row of the train split has a label: the teacher must be a ready one (no teacher.training), and "
                "there is nothing to train a baseline on (baseline: false)"
            )
        self._rehearse()
        if PartialState().is_main_process:
            self.workspace.begin(fingerprint(self.splits))
        PartialState().wait_for_everyone()
        teacher, teacher_seconds = self._teacher()
        teacher_logits, labels = self._predict(teacher, self._label_order(teacher))
        check_logits(torch.from_numpy(teacher_logits))
        teacher_result = self._measured(teacher, teacher_logits, labels, teacher_seconds)
        student, student_seconds = self._trained("student", lambda: self._student(teacher), teacher)
        student_logits, _ = self._predict(student)
        student_result = self._measured(student, student_logits, labels, student_seconds)
        baseline_result = None
        if self.recipe.baseline:
            baseline, baseline_seconds = self._trained("baseline", lambda: self._student(teacher), None)
            baseline_result = self._measured(baseline, self._predict(baseline)[0], labels, baseline_seconds)
        first = next(iter(teacher_result.metrics))
        results = Results(
            task=self.recipe.task,
            recipe=self.name,
            teacher=teacher_result,
            student=student_result,
            baseline=baseline_result,
            agreement=agreement(student_logits, teacher_logits, labels),
            gap_closed=None
            if baseline_result is None
            else gap_closed(*(model.metrics[first] for model in (teacher_result, student_result, baseline_result))),
            environment=environment(),
            data=facts,
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
            section = self.recipe.teacher
            teacher = self._teacher()[0] if section.training is None else self._new_model(section)
            self._label_order(teacher)
            self._student(teacher)
        finally:
            transformers.logging.set_verbosity(verbosity)

    def _teacher(self) -> tuple[PreTrainedModel, float | None]:
        section = self.recipe.teacher
        if section.training is not None:
            return self._trained("teacher", lambda: self._new_model(section), None)
        assert section.model is not None
        teacher = load_teacher(
            section.model,
            self.recipe.task,
            dtype=self.recipe.training.get("teacher_dtype"),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            allow_untrained=self.recipe.training.get("allow_untrained_teacher", False),
        )
        return teacher, None

    def _student(self, teacher: PreTrainedModel) -> PreTrainedModel:
        section = self.recipe.student
        if section.from_teacher is None:
            return self._new_model(section)
        student = student_from_teacher(teacher, section.from_teacher.layers)
        set_labels(student.config, self.splits.label_names)
        return student

    def _new_model(self, section: Teacher | Student) -> PreTrainedModel:
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

    # ---- Training ----

    def _trained(
        self, stage: str, build: Callable[[], PreTrainedModel], teacher: PreTrainedModel | None
    ) -> tuple[PreTrainedModel, float]:
        """Return a stage's trained model and the seconds that it took, trained now or before."""
        record = self.workspace.record(stage)
        if record is not None:
            return self._load(self.workspace.model_folder(stage)), record["train_seconds"]
        args = _arguments(self.recipe, stage, self.workspace.checkpoints(stage))
        set_seed(args.seed)
        model = build()
        if teacher is not None and args.teacher_dtype is not None:
            teacher = copy.deepcopy(teacher)  # the trainer converts it in place, and a baseline may be made of it
        checkpoint = self.workspace.last_checkpoint(stage)
        clock = _Clock(0.0 if checkpoint is None else checkpoint.seconds)
        trainer = DistillationTrainer(
            model=model,
            teacher=teacher,
            args=args,
            train_dataset=self.inputs.teacher_train if stage == "teacher" else self.inputs.train,
            eval_dataset=self.inputs.evaluation,
            data_collator=self.inputs.collator,
            processing_class=self.inputs.processor,
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

    def _load(self, folder: Path) -> PreTrainedModel:
        return AUTO_CLASSES[self.recipe.task].from_pretrained(str(folder), dtype=torch.float32)

    # ---- Results ----

    def _predict(self, model: PreTrainedModel, order: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's logits, in the given order of classes, and the labels of the rows judged on."""
        # Any stage but the student's needs no teacher; nothing is trained, saved or smoothed here.
        nothing = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        nothing |= {"bf16_full_eval": False, "fp16_full_eval": False}  # these convert the model for good
        args = _arguments(
            self.recipe, "baseline", self.workspace.checkpoints("student"), label_smoothing_factor=0.0, **nothing
        )
        trainer = DistillationTrainer(
            model=model,
            args=args,
            data_collator=partial(_collated, self.inputs.collator, model.dtype),
            processing_class=self.inputs.processor,
        )
        prediction = trainer.predict(self.inputs.judged)
        logits = prediction.predictions
        return logits if order is None else logits[..., order], prediction.label_ids

    def _label_order(self, teacher: PreTrainedModel) -> list[int] | None:
        """Return where a teacher has the data's classes; None: in the same places."""
        label_map = self.recipe.training.get("teacher_label_map")
        return align_labels(names_in_order(teacher.config.id2label), self.splits.label_names, label_map)

    def _measured(
        self, model: PreTrainedModel, logits: np.ndarray, labels: np.ndarray, seconds: float | None
    ) -> ModelResult:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return ModelResult(
            metrics=self.metrics(logits, labels),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            size_mib=round(size / 2**20, 3),
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
    teacher = recipe.teacher
    if recipe.student.from_teacher is None or teacher.training is not None:
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
    chosen = recipe.teacher.training if stage == "teacher" else recipe.training
    settings |= {**(chosen or {}), **fixed}
    if stage != "student":
        settings["alpha"] = 1.0
    return DistillationConfig(output_dir=str(folder), **settings)


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


def _best(checkpoint: Checkpoint, args: DistillationConfig) -> Path:
    best = checkpoint.state.get("best_model_checkpoint")
    return Path(best) if args.load_best_model_at_end and best else checkpoint.path


def _collated(collator: Callable[[list], Any], dtype: torch.dtype, rows: list) -> dict[str, torch.Tensor]:
    """Make a batch whose images have the type of a model's weights: not every model converts them itself."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in collator(rows).items()}
