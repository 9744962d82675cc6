"""The stages of a run, trained one after the other: what they share, and who teaches whom."""

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PrinterCallback, set_seed
from transformers.integrations import TensorBoardCallback

from hf_distill.data.loading import Splits, fingerprint
from hf_distill.data.processors import processor_settings
from hf_distill.evaluation.metrics import Metrics
from hf_distill.evaluation.predictor import predict
from hf_distill.evaluation.results import curve
from hf_distill.evaluation.teacher_quality import ChanceTeacherError
from hf_distill.hub.card.lineage import NOWHERE, model_origin
from hf_distill.models.adapters import merged, with_adapter
from hf_distill.models.vocabulary import prune_embeddings
from hf_distill.runs.building import Member, ModelBuilder, column_of
from hf_distill.runs.checkpoint import Checkpoint
from hf_distill.runs.data_info import data_info
from hf_distill.runs.fit import check_fit
from hf_distill.runs.preprocessing import Inputs, Section
from hf_distill.runs.progress import Progress, StageCallback
from hf_distill.runs.recipe.schema import Augment, Recipe, Student, Teacher
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.runs.shared_targets import SharedTargets, origin_of_shared
from hf_distill.runs.timing import Clock
from hf_distill.runs.workspace import TENSORBOARD, Workspace
from hf_distill.teachers.loading import forward_parameters
from hf_distill.training.config import DistillationConfig
from hf_distill.training.losses.soft_losses import check_soft_loss
from hf_distill.training.trainer import DistillationTrainer


class Run:
    """The stages of one run, with all that they share; made by `open_run`."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        settings: StageSettings,
        workspace: Workspace,
        splits: Splits,
        inputs: Inputs,
        metrics: Metrics,
        origin: dict[str, Any],
        shared: SharedTargets | None,
        images: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.recipe = recipe
        self.name = name
        self.settings = settings
        self.workspace = workspace
        self.splits = splits
        self.builder = ModelBuilder(recipe, splits, settings, shared)
        self.inputs = inputs
        self.metrics = metrics
        self.curves: dict[str, list[dict[str, float]]] = {}  # by the stage
        self.data_origin = origin
        self.shared = shared
        self._images = images
        self.progress = progress
        self.origins: dict[int, dict[str, Any]] = {}  # by the section of the recipe
        self._models: dict[str, PreTrainedModel] = {}  # of stages, built and not trained yet, or loaded

    def check(self, *, needs_labels: bool) -> dict[str, Any]:
        """Build the models once, to see that they can be and fit the data, and compare the folder; nothing is written.

        Raises:
            ValueError: the models do not fit each other or the data, or the folder holds work on other data.
        """
        info = data_info(self.recipe, self.splits, self.inputs, self._images)
        is_trained = any(teacher.training is not None for teacher in self.recipe.teachers)
        if info["unlabelled_share"] == 1 and (needs_labels or is_trained):
            raise ValueError(
                "no row of the train split has a label: the teacher must be a ready one (no teacher.training), and "
                "there is nothing to train a baseline on (baseline: false)"
            )
        for stage in self.recipe.student_stages():
            args = self.settings.of(stage)
            if args.uses_teacher:
                kind: Any = "single_label_classification"
                check_soft_loss(args.soft_loss, args.standardize_logits, kind, len(self.splits.label_names))
        check_fit(self.recipe, self.builder.dry_build(), self.inputs, self.settings)
        if self.shared is not None:
            _, section = self.first_student
            self.shared.check_no_others(
                self.settings.of(self.first_student[0]),
                labels=list(self.splits.label_names),
                processor=self.inputs.reader(section).processor,
                columns=self.splits.columns.inputs,
                is_token_level=self.recipe.task == "token-classification",
            )
        if PartialState().is_main_process:
            self.workspace.check_work(self._data_fingerprint(), self._reading_of_trained())
        return info

    def prepare(self, *, needs_labels: bool) -> dict[str, Any]:
        """Check the run, and make the output folder its own; see `check`."""
        info = self.check(needs_labels=needs_labels)
        if PartialState().is_main_process:
            self.workspace.begin(self._data_fingerprint(), self._reading_of_trained())
        PartialState().wait_for_everyone()
        return info

    def is_finished(self) -> bool:
        """Tell whether all stages and the results are there, of these settings and data."""
        found = [False]
        if PartialState().is_main_process and (self.workspace.path / "results.json").exists():
            found = [self.workspace.is_finished(self._data_fingerprint(), self._reading_of_trained())]
        return bool(broadcast_object_list(found)[0])

    def _data_fingerprint(self) -> str:
        known = fingerprint(self.splits, self.recipe.teachers[0].column)
        return known if self.shared is None else f"{known} {self.shared.fingerprint}"

    def _reading_of_trained(self) -> dict[str, dict[str, Any]]:
        """Tell how the teachers that are trained here read the data, by their stage."""
        readers = {stage: self.inputs.reader(section) for stage, section in self.recipe.teacher_stages().items()}
        return {
            stage: {
                "processor": processor_settings(reader.processor),
                **{name: getattr(reader, name) for name in ("max_length", "segments", "num_channels")},
            }
            for stage, reader in readers.items()
        }

    @property
    def first_student(self) -> tuple[str, Student]:
        """Return the student that the recipe's teachers teach, with the name of its stage."""
        return next(iter(self.recipe.student_stages().items()))

    # ---- Teachers ----

    def teachers(self) -> list[Member]:
        """Return the teachers, trained first if the recipe says so."""
        stages = {id(section): stage for stage, section in self.recipe.teacher_stages().items()}
        members = []
        for section in self.recipe.teachers:
            stage = stages.get(id(section))
            if self.shared is not None:
                members.append(Member(section, None, None, None, self.shared.folder))
                self.origins[id(section)] = origin_of_shared(self.shared)
            elif stage is None:
                members.append(Member(section, self.builder.ready_teacher(section), section.model, None))
                self._note_origin(section, [])
            else:
                model, seconds = self.train_stage(stage, section, [])
                members.append(Member(section, model, str(self.workspace.model_folder(stage)), seconds))
        return members

    # ---- Training ----

    def model_of(self, stage: str, section: Section, members: Sequence[Member]) -> PreTrainedModel:
        """Return the model of a stage: trained if the stage is finished, else as it is before its training."""
        if stage not in self._models and self.workspace.record(stage) is not None:
            self._models[stage] = self.builder.saved_model(self.workspace.model_folder(stage), section)
        if stage not in self._models:
            set_seed(self.settings.of(stage).seed)
            if isinstance(section, Student):
                self._models[stage] = self.builder.student(section, members)
                kept = self.inputs.kept_tokens(section)
                if kept is not None:
                    prune_embeddings(self._models[stage], kept)
            else:
                self._models[stage] = self.builder.new_model(section)
            self.inputs.reader(section).give_padding_id(self._models[stage].config)
        return self._models[stage]

    def train_stage(
        self, stage: str, section: Section, members: Sequence[Member], teachers: Sequence[Member] = ()
    ) -> tuple[PreTrainedModel, float]:
        """Return a stage's trained model and the seconds that it took, trained now or before.

        A student may be made of the layers of `teachers` that do not teach it, as a baseline is.
        """
        model, record = self.model_of(stage, section, teachers or members), self.workspace.record(stage)
        del self._models[stage]
        if record is not None:
            self.origins.setdefault(id(section), record.get("origin", NOWHERE))
            self.curves[stage] = curve(record["log_history"])
            self.progress.found(stage, f"trained before ({record['train_seconds']:.1f} s)")
            return model, record["train_seconds"]
        args = self.settings.of(stage)
        self._note_origin(section, members)
        checkpoint = self.workspace.last_checkpoint(stage)
        clock = Clock(0.0 if checkpoint is None else checkpoint.seconds)
        adapter = section.peft if isinstance(section, Student) else None
        if adapter is not None:
            model = with_adapter(model, adapter, self.recipe.task)
        augment = self.recipe.data.augment
        if isinstance(section, Teacher) and section.augment is not None:
            augment = section.augment
        trainer = self.trainer(
            section,
            model,
            members,
            args,
            train_dataset=self.rows(section, "train" if members else self._labelled_role, members, augment, args),
            eval_dataset=self.rows(section, "evaluation", members),
            compute_metrics=lambda prediction: self.metrics(prediction.predictions, prediction.label_ids),
            callbacks=[clock, self._told(stage, section, members)],
        )
        self._direct_tensorboard(trainer, stage, goes_on=checkpoint is not None)
        if checkpoint is not None and checkpoint.is_final:
            # Trained to the end, but not saved: `train` would go one step too far.
            if adapter is not None:
                trainer._load_from_checkpoint(str(_best(checkpoint, args)))
            else:
                saved = self.builder.saved_model(_best(checkpoint, args), section)
                model.load_state_dict(saved.state_dict())
                model.config = saved.config
            history = checkpoint.state["log_history"]
        else:
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
            except ChanceTeacherError as error:
                raise ValueError(chance_message(error, members)) from error
            history = trainer.state.log_history
        if adapter is not None:
            model = trainer.model = trainer.model_wrapped = merged(trainer.accelerator.unwrap_model(trainer.model))
        seconds = round(clock.seconds(), 3)
        self.curves[stage] = curve(history)

        def save(folder: Path) -> None:
            trainer.save_model(str(folder))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths in it

        PartialState().wait_for_everyone()  # until no one writes into the checkpoints that are dropped now
        if PartialState().is_main_process:
            record = {"train_seconds": seconds, "log_history": history, "origin": self.origins[id(section)]}
            self.workspace.finish(stage, save, record)
        else:
            trainer.save_model(str(self.workspace.path))  # writes nothing, but gathers weights that are sharded
        PartialState().wait_for_everyone()
        return model, seconds

    def trainer(
        self,
        section: Section,
        model: PreTrainedModel,
        members: Sequence[Member],
        args: DistillationConfig,
        **arguments: Any,
    ) -> DistillationTrainer:
        """Return a trainer of a model with its teachers, whose settings are completed."""
        reader = self.inputs.reader(section)
        is_taught = bool(members)
        processors = None
        if is_taught and members[0].model is not None and members[0].cached_in is None:
            processors = [self.inputs.reader(member.section).processor for member in members]
            args.teacher_input_columns = list(self.splits.columns.inputs)
            args.teacher_max_length = self.recipe.data.max_length
        trainer = DistillationTrainer(
            model=model,
            teacher=self.builder.for_trainer(members, args) if is_taught else None,
            args=args,
            processing_class=reader.processor,
            teacher_processing_class=processors,
            **{"data_collator": reader.collator, **arguments},
        )
        trainer.remove_callback(PrinterCallback)  # the progress tells it
        return trainer

    @cached_property
    def _labelled_role(self) -> str:
        """Return the role of the training rows for a stage that learns from labels alone; the others say it nothing."""
        return "train" if len(self.splits.labelled) == len(self.splits.train) else "labelled"

    def expected_steps(self, stage: str) -> int:
        """Return how many steps a stage will most likely have."""
        args = self.settings.of(stage)
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        is_taught = stage in self.recipe.student_stages()
        per_epoch = max(-(-len(self.splits.train if is_taught else self.splits.labelled) // rows), 1)
        return args.max_steps if args.max_steps > 0 else round(per_epoch * args.num_train_epochs)

    def _told(self, stage: str, section: Section, members: Sequence[Member]) -> StageCallback:
        """Return the callback by which the progress of a stage is told."""
        what = "training on the labels" if isinstance(section, Teacher) else "the same student on the labels alone"
        if members:
            first = members[0]
            known = {"cached": first.cached_in is not None, "data": column_of(first) is not None}
            whose = "the teachers'" if len(members) > 1 else "the teacher's"
            what = f"distilling from {whose} cached soft targets" if known["cached"] else "distilling from the teacher"
            what = "distilling from the soft targets in the data" if known["data"] else what
        return StageCallback(self.progress, stage, what, self.recipe.metric_names[0])

    def _direct_tensorboard(self, trainer: DistillationTrainer, stage: str, *, goes_on: bool) -> None:
        """Have TensorBoard's events written where they stay: a stage's checkpoints are deleted at its end."""
        own = self.workspace.path / TENSORBOARD
        if not goes_on and PartialState().is_main_process:
            shutil.rmtree(own / stage, ignore_errors=True)  # of a training that was stopped before its first checkpoint
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = str(Path(callback.logging_dir or own) / stage)

    def rows(
        self,
        section: Section,
        role: str,
        members: Sequence[Member] = (),
        augment: Augment | None = None,
        args: DistillationConfig | None = None,
    ) -> Any:
        """Return a split for a model, with what its teachers read of it."""
        readers = [reader for member in members for reader in self.inputs.readers_of_teacher(member.section)]
        seed = 42 if args is None else args.seed
        column = next((name for name in map(column_of, members) if name is not None), None)
        return self.inputs.rows(
            self.inputs.reader(section), role, augment=augment, seed=seed, teachers=readers, soft_targets=column
        )

    # ---- Where it all comes from ----

    def _note_origin(self, section: Section, members: Sequence[Member]) -> None:
        """Remember where a model comes from that has just been built; a baseline comes from where its student does."""
        if id(section) in self.origins:
            return
        if isinstance(section, Student) and section.from_teacher is not None:
            self.origins[id(section)] = self.origins[id(members[0].section)]
        elif PartialState().is_main_process:  # the others write nothing
            self.origins[id(section)] = model_origin(section.model, section.revision)
        else:
            self.origins[id(section)] = dict(NOWHERE)

    def lineage(self, student: PreTrainedModel) -> dict[str, Any]:
        """Return where the weights and the data come from, for the results."""
        seeds = self.seeds()

        def entry(section: Section) -> dict[str, Any]:
            return {**self.origins[id(section)], "seed": seeds.get(id(section))}

        return {
            "teachers": [entry(section) for section in self.recipe.teachers],
            "stages": [entry(section) for section in self.recipe.stages],
            "student": {**entry(self.recipe.student), "model_type": student.config.model_type},
            "dataset": self.data_origin,
        }

    def seeds(self) -> dict[int, int]:
        """Return the seed of each section that is trained, by its `id`."""
        return {
            id(section): self.settings.of(stage).seed
            for stage, section in {**self.recipe.teacher_stages(), **self.recipe.student_stages()}.items()
        }

    # ---- Results ----

    def predict(self, model: PreTrainedModel, section: Section) -> tuple[np.ndarray, np.ndarray]:
        """Return a model's logits, and the labels of the evaluation rows."""
        reader, rows = self.inputs.reader(section), self.rows(section, self.inputs.eval_role)
        names = forward_parameters(model)
        return predict(model, rows, reader.collator, self.settings.of("student"), input_names=names)


def chance_message(error: ChanceTeacherError, members: Sequence[Member]) -> str:
    """Say why a recipe's teachers are refused; those that it has trained are not called untrained."""
    quality, cause = error.quality, error.quality.cause
    if quality.order is None and any(member.seconds is not None for member in members):
        cause = (
            "most likely its training here was too short, or on too few rows of the rarer classes: train it longer, "
            "at another learning rate or on more rows"
        )
    return f"{error.who} {quality.fault}: {cause}; or set training.allow_untrained_teacher=true to use it all the same"


def _best(checkpoint: Checkpoint, args: DistillationConfig) -> Path:
    best = checkpoint.state.get("best_model_checkpoint")
    return Path(best) if args.load_best_model_at_end and best else checkpoint.path
