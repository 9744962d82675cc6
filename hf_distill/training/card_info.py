"""What a trainer knows of the distillation that it does: what its card tells."""

import dataclasses
import re
from typing import Any

import datasets
from torch import nn
from transformers.trainer_utils import has_length

from hf_distill.evaluation.environment import environment
from hf_distill.evaluation.results import curve
from hf_distill.hub.card.trainer_card import Training
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.loading import task_of
from hf_distill.training.config import DistillationConfig
from hf_distill.training.provenance import Provenance

_HUB_FILE = re.compile(r"hf://datasets/([^@\s]+)@([0-9a-f]{40})/")
# Settings that say where something is, how it is reported or on what it is computed, and not how the student is made.
_NOT_OF_THE_STUDENT = re.compile(
    r"(hub|log|logging|save|eval|dataloader|ddp|trackio|teacher_logits|do|include|fsdp)_.*|log_level|fsdp|deepspeed"
    r"|output_dir|push_to_hub|disable_tqdm|report_to|run_name|project|use_cpu|debug|resume_from_checkpoint|local_rank"
    r"|remove_unused_columns|label_names|skip_memory_metrics|prediction_loss_only|batch_eval_metrics|ignore_data_skip"
    r"|per_device_eval_batch_size|enable_jit_checkpoint|restore_callback_states_from_checkpoint|torch_empty_cache_steps"
    r"|allow_untrained_teacher|teacher_trust_remote_code"
)


def card_info_of(trainer: Any, lineage: Provenance, finetuned_from: str | None) -> Training:
    """Collect what goes into the card of a trainer's student; a license may be asked for on the Hub."""
    args, state = trainer.args, trainer.state
    student = trainer.student
    config = getattr(student, "config", None)
    rows = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    is_ending = state.global_step >= state.max_steps or trainer.control.should_training_stop
    is_running = trainer.is_in_train and not is_ending
    step = state.global_step
    if not trainer.is_in_train and args.load_best_model_at_end and state.best_global_step:
        step = state.best_global_step
    evaluations, evaluated_at = _evaluations(trainer, step)
    section = lineage.student.section
    if finetuned_from is not None:
        section = {**section, "model": finetuned_from, "config": None}
    return Training(
        task=_task(student),
        recipe={
            "teacher": lineage.teacher_sections(),
            "student": section,
            "data": {"dataset": None},
            "training": _settings(args),
        },
        lineage=lineage.origins(finetuned_from, args.seed, _data_origin(rows)),
        data={
            "label_names": names_in_order(getattr(config, "id2label", None) or {}),
            "problem_type": trainer.loss_objective.problem_type,
            "num_channels": getattr(config, "num_channels", 3),
            "has_processor": _processor(trainer) is not None,
            "num_train_rows": _length(trainer.train_dataset),
            "num_eval_rows": _length(trainer.eval_dataset),
            "split": _split(trainer.eval_dataset),
        },
        evaluations=evaluations,
        evaluated_at=evaluated_at,
        step=step,
        last_step=state.max_steps if is_running else state.global_step,
        is_running=is_running,
        teacher_quality=None if trainer.teacher_quality is None else str(trainer.teacher_quality),
        num_parameters=lineage.student.num_parameters,
        curve=curve(state.log_history),
        environment=environment(),
    )


def _task(student: nn.Module) -> str | None:
    try:
        return task_of(student)
    except ValueError:
        return None


def _settings(args: DistillationConfig) -> dict[str, Any]:
    """Return the settings of the student's training that are not the defaults."""
    found = {}
    for each in dataclasses.fields(args):
        value = getattr(args, each.name)
        default = each.default
        if default is dataclasses.MISSING and each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        value = getattr(value, "value", value)  # of an enumeration
        is_plain = isinstance(value, str | int | float | list | dict)
        if is_plain and value != default and (value or default) and not _NOT_OF_THE_STUDENT.fullmatch(each.name):
            found[each.name] = value
    return found


def _evaluations(trainer: Any, step: int) -> tuple[dict[str, dict[str, float]], int | None]:
    """Return the last evaluation of each set, if there is one the last of the weights after a step; and its step."""
    history = trainer.state.log_history
    ends = [place for place, entry in enumerate(history) if "train_runtime" in entry]
    since = [] if trainer.is_in_train or not ends else _found(history[ends[-1] + 1 :])
    entries = since or _found(history)
    if not entries:
        return {}, None
    steps = [entry["step"] for entry in entries]
    chosen = step if step in steps else steps[-1]
    if since:
        chosen = steps[-1]  # made of the weights that the training has left, whichever they are
    sets: dict[str, dict[str, float]] = {}
    names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else []
    for entry in entries:
        if entry["step"] != chosen:
            continue
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name != key:
                of_set = next((each for each in names if name.startswith(f"{each}_")), "")
                sets.setdefault(of_set, {})[name.removeprefix(f"{of_set}_") if of_set else name] = value
    return sets, step if since else int(chosen)


def _found(history: list[Any]) -> list[dict[str, float]]:
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    return [entry for evaluation in evaluations for entry in curve([evaluation])]


def _processor(trainer: Any) -> Any:
    return trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)


def _length(rows: Any) -> int | None:
    if isinstance(rows, dict):
        lengths = [_length(each) for each in rows.values()]
        return None if None in lengths else sum(length or 0 for length in lengths)
    return len(rows) if rows is not None and has_length(rows) else None


def _split(rows: Any) -> str | None:
    split = str(getattr(rows, "split", None) or "")
    return split if re.fullmatch(r"\w+", split) else None


def _data_origin(rows: Any) -> dict[str, Any]:
    """Return the Hub id and the commit of the files that rows were read from, where `datasets` knows them."""
    nowhere: dict[str, Any] = {"id": None, "revision": None}
    if not isinstance(rows, datasets.Dataset | datasets.IterableDataset):
        return nowhere
    found = {match.groups() for url in rows.info.download_checksums or {} if (match := _HUB_FILE.match(str(url)))}
    if len(found) != 1:
        return nowhere
    name, commit = found.pop()
    return {"id": name, "revision": commit, "config": rows.info.config_name}
