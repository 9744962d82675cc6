"""The model card: from a recipe and its results alone, with no network and no model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_distill.evaluation.metrics import LOCAL_METRICS
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.tables import exported, markdown_table, results_table, stands_alone, summary, verdict
from hf_distill.hub.card.card import CardInfo, card
from hf_distill.hub.card.licenses import license_conflicts, student_license
from hf_distill.hub.card.limits import limits
from hf_distill.hub.card.origins import Origins, inferred_lineage, lineage_table
from hf_distill.hub.card.parts import code_of_others, objective, settings, split_words
from hf_distill.hub.card.usage import usage
from hf_distill.hub.portable import portable
from hf_distill.hub.readme import our_section


def model_card(
    recipe: Mapping[str, Any],
    results: Results,
    command: str,
    *,
    repo_id: str | None = None,
    folder: str | None = None,
    plot: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Fill in the card of a distilled student; before it is published, its snippets load it from its folder."""
    lineage = results.lineage or inferred_lineage(recipe)
    origins = Origins(recipe, lineage)
    shared = portable(recipe, lineage)
    data, training = shared["data"], shared["training"]
    name = repo_id or f"your-name/{results.recipe.split('/')[-1]}"
    chosen = student_license(recipe, lineage, license)
    source = origins.dataset or data["dataset"] or data["path"]
    on_hub = [origins.dataset] if origins.dataset and ":" not in origins.dataset else []
    info = CardInfo(
        title=_title(results.task, source, results.data.get("label_names") or [], repo_id),
        model_name=name.split("/")[-1],
        origins=origins,
        license=chosen,
        license_conflicts=license_conflicts(recipe, lineage, chosen.get("license")),
        tasks=[results.task],
        datasets=[*on_hub, *origins.soft_targets],
        metrics=[name for name in _names(shared["metrics"]) if not name.startswith("./")],
        tags=["knowledge-distillation", "distillation"],
        eval_results=_eval_results(results, data, source, origins.dataset_revision),
        results=markdown_table(results),
        summary=" ".join(
            [*verdict(results), summary(results), *filter(None, [stands_alone(results), exported(results)])]
        ),
        lineage=lineage_table(origins, results),
        making=list(_making(shared, results, source)),
        usage=usage(shared, results, repo_id or folder or name),
        limits=limits(shared, results),
        plot=plot,
        of_run={
            "num_eval_rows": f"{results.data['num_eval_rows']:,}",
            "eval_split": _eval_split(data) or "the evaluation split",
            "moment": "the best evaluation" if training.get("load_best_model_at_end") else "the last step",
            "seed": training.get("seed", 42),
            "has_baseline": results.baseline is not None,
            "code_of_others": code_of_others(shared),
            "per_class": _per_class(results),
            "meant_for": _meant_for(results, source),
            "command": command,
            "shortened": origins.has_local or recipe["data"]["path"] is not None,
        },
    )
    return card(info)


def verify(card_text: str, results: Results) -> list[str]:
    """Compare the numbers of a card with the results that it was made from.

    Raises:
        ValueError: the card's metadata or marks cannot be read.
    """
    section = our_section(card_text)
    header, rows = results_table(results)
    found = _table(section, header[0])
    lines = []
    for role, *cells in rows:
        for name, expected in zip(header[1:], cells, strict=True):
            said = found.get(role, {}).get(name)
            lines += _difference(f"{role} {name}", said, expected)
    lines += [
        f"{role}: the card has a row for it, results.json none" for role in found if role not in dict(_named(rows))
    ]
    text = " ".join(section.split())
    expected_shares = re.findall(r"-?[\d.]+%", summary(results))
    for what, pattern, place in (
        ("agreement", r"agrees with the teacher on (-?[\d.]+%) of the predictions", 0),
        ("gap closed", r"closes (-?[\d.]+%) of the gap", 1),
    ):
        match = re.search(pattern, text)
        share = expected_shares[place] if place < len(expected_shares) else None
        lines += _difference(what, match and match[1], share)
    values = _index_values(card_text)
    for name, value in results.student.metrics.items():
        entries = values.get(name, [])
        ours = [data for data, number in entries if number == value]
        if not ours:
            lines += _difference(f"model-index {name}", entries[0][1] if entries else None, value)
        for data, number in entries:
            if data in ours and number != value:  # results on other data are somebody else's
                lines += _difference(f"model-index {name}", number, value)
    return lines


# ---- Metadata ----


def _eval_results(results: Results, data: Mapping[str, Any], source: str, revision: str | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=results.task,
            task_name=results.task.replace("-", " ").capitalize(),
            dataset_type=source,
            dataset_name=source,
            dataset_config=data["name"],
            dataset_split=_eval_split(data),
            dataset_revision=revision,
            metric_type=name,
            metric_name=LOCAL_METRICS[name].title if name in LOCAL_METRICS else name,
            metric_value=value,
        )
        for name, value in results.student.metrics.items()
    ]


def _names(metrics: Sequence[str | Mapping[str, Any]]) -> list[str]:
    return [metric if isinstance(metric, str) else metric["name"] for metric in metrics]


# ---- Words ----


_KINDS = {
    "text-classification": ("Text", "texts"),
    "token-classification": ("Word", "the words of texts"),
    "image-classification": ("Image", "images"),
}
_MOST_CLASSES = 30  # that a table has


def _title(task: str, source: str, labels: Sequence[str], repo_id: str | None) -> str:
    kind = _KINDS.get(task, ("A", ""))[0]
    kind = kind if repo_id is None else f"{repo_id.split('/')[-1]}: {kind.lower()}"
    named = f": {', '.join(labels)}" if 0 < len(labels) <= 3 else f", {len(labels)} classes" if labels else ""
    return f"{kind} classifier for {source}{named}"


def _meant_for(results: Results, source: str) -> str:
    labels = results.data.get("label_names") or []
    shown = ", ".join(labels[:_MOST_CLASSES]) + (" ..." if len(labels) > _MOST_CLASSES else "")
    what = _KINDS.get(results.task, ("", "inputs"))[1]
    return (
        f"It tells which of these {what} like those of {source} are: {shown or 'its labels'}. Try it on data of your "
        "own before you rely on it (`hf-distill evaluate`), and let a person look at what it decides about people."
    )


def _per_class(results: Results) -> str | None:
    """Return a table of the student's precision, recall and F1 for each class; None if they are not known, or many."""
    if not 0 < len(results.per_class) <= _MOST_CLASSES:
        return None
    rows = [
        f"| {name} | {int(each['rows']):,} | {each['precision']:.3f} | {each['recall']:.3f} | {each['f1']:.3f} |"
        for name, each in results.per_class.items()
    ]
    return "\n".join(["| class | rows | precision | recall | F1 |", "| --- | ---: | ---: | ---: | ---: |", *rows])


def _making(recipe: Mapping[str, Any], results: Results, source: str) -> Iterator[tuple[str, str]]:
    data, training = recipe["data"], recipe["training"]
    configuration = f" ({data['name']})" if data["name"] else ""
    yield "data", f"{source}{configuration}, {data['train_split']} for training"
    rows = f"{results.data['num_train_rows']:,}, {results.data['unlabelled_share']:.1%} without a label"
    yield (
        "training rows",
        rows + (f" (at most {data['max_train_rows']:,} were drawn)" if data["max_train_rows"] else ""),
    )
    if data["max_length"]:
        yield "tokens kept of a text", f"{data['max_length']}"
    yield "objective", objective(training)
    teachers = recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
    if sum(teacher["specialist"] is None for teacher in teachers) > 1:
        weights = training.get("teacher_weights")
        mean = training.get("teacher_combination", "arithmetic")
        yield "teachers combined", f"{mean} mean of their probabilities, weights {weights or 'equal'}"
    for place, stage in enumerate(recipe["stages"], start=1):
        yield f"stage {place}", f"{objective({**training, **stage['training']})}; {settings(stage['training'], None)}"
    yield "student's training", settings(training, data["augment"])
    for place, teacher in enumerate(teachers, start=1):
        whose = "teacher's" if len(teachers) == 1 else f"teacher-{place}'s"
        yield f"{whose} training", _teacher_training(teacher, data["augment"])
    yield "environment", ", ".join(f"{name} {version}" for name, version in results.environment.items())


def _eval_split(data: Mapping[str, Any]) -> str | None:
    split = data["test_split"] or data["eval_split"]
    return None if split is None else split_words(split, data["train_split"])


def _teacher_training(teacher: Mapping[str, Any], augment: Mapping[str, Any] | None) -> str:
    if teacher["training"] is None:
        return "none here, it was ready"
    chosen = teacher["augment"] or augment or {}
    # Copies of texts have no labels, which a teacher learns from.
    return settings(teacher["training"], {} if chosen.get("copies") else chosen)


# ---- Numbers read back ----


def _named(rows: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [(row[0], row[1:]) for row in rows]


def _table(section: str, first: str) -> dict[str, dict[str, str]]:
    """Return the cells of the results table by row and column: the first table whose header begins with `first`."""
    lines = iter(section.splitlines())
    header: list[str] = []
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.strip().startswith("|") else []
        if not header:
            header = cells if cells and cells[0] == first else []
        elif not cells:
            break
        elif not set(cells[0]) <= set("-: "):
            found[cells[0]] = dict(zip(header[1:], cells[1:], strict=False))
    return found


def _index_values(card_text: str) -> dict[str, list[tuple[Any, Any]]]:
    """Return the data and the values in a card's model-index by the type of their metric."""
    values: dict[str, list[tuple[Any, Any]]] = {}
    found = ModelCard(card_text.removeprefix("\ufeff"), ignore_metadata_errors=True)
    for result in found.data.get("eval_results") or []:
        data = (result.task_type, result.dataset_type, result.dataset_config, result.dataset_split)
        values.setdefault(result.metric_type, []).append((data, result.metric_value))
    return values


def _difference(what: str, said: Any, expected: Any) -> list[str]:
    if said is None and expected is None:
        return []
    if said is not None and expected is not None and (_number(said) == _number(expected) or str(said) == str(expected)):
        return []
    if said is None:
        return [f"{what}: the card says nothing, results.json {expected}"]
    return [f"{what}: the card says {said}, results.json {'nothing' if expected is None else expected}"]


def _number(text: Any) -> Any:
    try:
        return float(str(text).replace(",", "").removesuffix("%"))
    except ValueError:
        return text
