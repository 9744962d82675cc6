"""The model card of a student that was trained in Python: from what its trainer knows, and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_distill.hub.card.card import CardInfo, card
from hf_distill.hub.card.licenses import license_conflicts, student_license
from hf_distill.hub.card.limits import limits_of_training
from hf_distill.hub.card.origins import Origins, lineage_table
from hf_distill.hub.card.parts import objective, settings
from hf_distill.hub.card.usage import usage
from hf_distill.hub.portable import is_local, last_name, portable

_LOSSES = ("loss", "soft_loss", "label_loss")
_OF_A_TEACHER = ("knowledge-distillation", "distillation")
_OF_A_TRAINER = "generated_from_trainer"


@dataclass(frozen=True)
class Training:
    """What a trainer knows, in the form that a recipe and its results have.

    Attributes:
        task: the Hub's name of it; None for a model that no Auto class knows.
        recipe: the sections `teacher` (a list, empty where none teaches), `student`, `data` and `training`, the last
            one with the settings that differ from the defaults. Local paths may be in it.
        lineage: `teachers`, `student` and `dataset`; no local path is in it.
        data: `label_names`, `problem_type`, `num_channels` and `has_processor` of the student; `num_train_rows` and
            `num_eval_rows`, None where it is not known; `split`, of the evaluation rows.
        evaluations: of the last one each set's numbers by name; a set that is the only one has the name "".
        evaluated_at: after which step that was.
        step: after which step the weights are those of the student.
        last_step: at which the training ends or has ended.
        is_running: whether it goes on.
        teacher_quality: how the teacher did on the evaluation rows, in words.
        num_parameters: of the student; of an adapter those of its base too.
        curve: what the training logged; see `hf_distill.evaluation.results.curve`.
        environment: versions and hardware.
    """

    task: str | None
    recipe: Mapping[str, Any]
    lineage: Mapping[str, Any]
    data: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, float]]
    evaluated_at: int | None
    step: int
    last_step: int
    is_running: bool
    teacher_quality: str | None
    num_parameters: int
    curve: Sequence[Mapping[str, float]]
    environment: Mapping[str, str]

    @property
    def is_measured(self) -> bool:
        """Tell whether the numbers are those of the student as it is."""
        return bool(self.evaluations) and self.evaluated_at == self.step

    @property
    def metric(self) -> str:
        """Return the number that a picture of the training shows: the first that is no loss, or the loss."""
        names = list(next(iter(self.evaluations.values()), {}))
        name = next((name for name in names if name not in _LOSSES), "loss")
        only = next(iter(self.evaluations), "")
        return f"{only}_{name}" if only else name


@dataclass(frozen=True)
class Stated:
    """What the user says about the student, by the keywords of `Trainer.create_model_card`.

    Attributes:
        model_name: the title.
        language: codes such as `en`.
        license: the Hub's identifier.
        tags: beside our own.
        tasks: the Hub's names; the first is that of the card.
        dataset_tags: Hub ids of data sets.
        dataset: their names.
        dataset_args: their configurations, or how they were loaded.
    """

    model_name: str
    language: str | Sequence[str] | None = None
    license: str | None = None
    tags: str | Sequence[str] | None = None
    tasks: str | Sequence[str] | None = None
    dataset_tags: str | Sequence[str] | None = None
    dataset: str | Sequence[str] | None = None
    dataset_args: str | Sequence[str] | None = None


def trainer_card(
    training: Training,
    stated: Stated,
    *,
    repo_id: str | None = None,
    plot: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Fill in the card of a student; what is not known is left out."""
    origins = Origins(training.recipe, training.lineage)
    shared = portable(training.recipe, training.lineage)
    chosen = student_license(training.recipe, training.lineage, license or stated.license)
    title = _public(stated.model_name)
    tasks = _listed(stated.tasks) or _listed(training.task)
    data_sets = _data_sets(training, stated)
    is_distilled = bool(training.recipe["teacher"])
    info = CardInfo(
        title=title,
        model_name=title,
        origins=origins,
        license=chosen,
        license_conflicts=license_conflicts(training.recipe, training.lineage, chosen.get("license")),
        tasks=tasks,
        datasets=[each.id for each in data_sets if each.id is not None],
        metrics=_metrics(training),
        tags=[*(_OF_A_TEACHER if is_distilled else ()), _OF_A_TRAINER, *_listed(stated.tags)],
        language=_listed(stated.language),
        eval_results=_eval_results(training, tasks, data_sets),
        results=_results(training) if training.evaluations else None,
        summary=_summary(training),
        lineage=lineage_table(origins),
        making=list(_making(training, shared, data_sets)),
        usage=None if training.task is None else usage(shared, _Usable(training), repo_id or f"your-name/{title}"),
        limits=_limits(training),
        plot=plot,
        plot_words="Losses and evaluations of the student by epoch",
        is_distilled=is_distilled,
    )
    return card(info)


def license_lines(training: Training, stated: Stated) -> list[str]:
    """Return what the teachers' licenses say to the student's, a line each; see `licenses.license_conflicts`."""
    chosen = student_license(training.recipe, training.lineage, stated.license).get("license")
    return license_conflicts(training.recipe, training.lineage, chosen)


class _Usable:
    """What the snippets depend on."""

    def __init__(self, training: Training) -> None:
        assert training.task is not None
        self.task: str = training.task
        self.data, self.lineage = training.data, training.lineage


# ---- Metadata ----


@dataclass(frozen=True)
class _DataSet:
    """A data set: its Hub id, None if it has none that is known, and what else is known of it."""

    name: str
    id: str | None = None
    args: str | None = None
    known: Mapping[str, Any] = field(default_factory=dict)  # more fields of EvalResult


def _data_sets(training: Training, stated: Stated) -> list[_DataSet]:
    ids, names, args = (_listed(each) for each in (stated.dataset_tags, stated.dataset, stated.dataset_args))
    origin = training.lineage["dataset"]
    if not ids and not names and origin["id"] is not None:
        ids = [origin["id"]]
    known = {
        "dataset_config": origin.get("config"),
        "dataset_split": training.data.get("split"),
        "dataset_revision": origin["revision"],
    }
    found = []
    for place in range(max(len(ids), len(names))):
        own = ids[place] if place < len(ids) else None
        name = names[place] if place < len(names) else own
        found.append(
            _DataSet(
                name=_public(str(name)),
                id=None if own is None or is_local(own) else own,
                args=_public(args[place]) if place < len(args) else None,
                known=known if own is not None and own == origin["id"] else {},
            )
        )
    return found


def _metrics(training: Training) -> list[str]:
    names = [name for numbers in training.evaluations.values() for name in numbers if name not in _LOSSES]
    return list(dict.fromkeys(names)) if training.is_measured else []


def _eval_results(training: Training, tasks: Sequence[str], data_sets: Sequence[_DataSet]) -> list[EvalResult]:
    """Return the numbers for the model-index; of several sets it is not known which data set each is."""
    if list(training.evaluations) != [""] or not training.is_measured:
        return []
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type=data_set.id or data_set.name,
            dataset_name=data_set.name,
            dataset_args=data_set.args,  # type: ignore[arg-type]  # a text, as `Trainer` writes it
            metric_type=name,
            metric_name=_words_of(name),
            metric_value=value,
            **data_set.known,
        )
        for task in tasks
        for data_set in data_sets
        for name, value in training.evaluations[""].items()
        if name not in _LOSSES
    ]


# ---- Words ----


def _results(training: Training) -> str:
    evaluations, count = training.evaluations, training.data["num_eval_rows"]
    names = list(dict.fromkeys(name for numbers in evaluations.values() for name in numbers))
    names.sort(key=_LOSSES.__contains__)  # what was measured comes before the losses
    header = ["evaluation rows", *map(_words_of, names)]
    rows = [
        [
            name or ("all" if count is None else f"{count:,}"),
            *(f"{numbers[each]:.4f}" if each in numbers else "-" for each in names),
        ]
        for name, numbers in evaluations.items()
    ]
    lines = [header, ["---", *["---:"] * len(names)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def _summary(training: Training) -> str:
    seed = training.lineage["student"]["seed"]
    lines = []
    if training.is_running:
        lines.append(f"The training goes on: this is its state after step {training.step:,} of {training.last_step:,}.")
    if not training.evaluations:
        lines.append("The student has not been evaluated.")
    elif training.is_measured:
        lines.append(f"Measured after step {training.step:,} of one run (seed {seed}).")
    else:
        lines.append(
            f"Measured after step {training.evaluated_at:,} of one run (seed {seed}); the weights are those after step "
            f"{training.step:,}."
        )
    if training.teacher_quality is not None:
        lines.append(f"The teacher on the evaluation rows: {training.teacher_quality}.")
    return "\n".join(lines)


def _making(training: Training, shared: Mapping[str, Any], data_sets: Sequence[_DataSet]) -> Iterator[tuple[str, str]]:
    chosen, data = shared["training"], training.data
    if data_sets:
        yield "data", ", ".join(each.name + (f" ({each.args})" if each.args else "") for each in data_sets)
    for what, name in (("training rows", "num_train_rows"), ("evaluation rows", "num_eval_rows")):
        if data[name] is not None:
            yield what, f"{data[name]:,}"
    if training.recipe["teacher"]:
        yield "objective", objective(chosen, data["problem_type"])
        teachers = training.recipe["teacher"]
        if sum(teacher["specialist"] is None for teacher in teachers) > 1:
            mean, weights = chosen.get("teacher_combination", "arithmetic"), chosen.get("teacher_weights")
            yield "teachers combined", f"{mean} mean of their probabilities, weights {weights or 'equal'}"
    else:
        yield "objective", "label loss"
    yield "student", f"{training.num_parameters:,} parameters"
    yield "student's training", f"{training.last_step:,} steps; {settings(chosen)}"
    yield "environment", ", ".join(f"{name} {version}" for name, version in training.environment.items())


def _limits(training: Training) -> list[str]:
    return limits_of_training(
        training.recipe,
        training.data,
        is_measured=training.is_measured,
        is_chosen=training.is_measured
        and not training.is_running
        and bool(training.recipe["training"].get("load_best_model_at_end")),
    )


def _words_of(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _public(name: str) -> str:
    """Return a name without the folders of this machine."""
    return last_name(name) if is_local(name) else name


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
