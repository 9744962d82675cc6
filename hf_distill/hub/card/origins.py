"""Who a student learnt from and what it was made of, in words and ids that strangers may see."""

from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.hub.portable import is_local, last_name

_HUB = "https://huggingface.co"


class Origins:
    """The models and data of a run, each with where it came from."""

    def __init__(self, recipe: Mapping[str, Any], lineage: Mapping[str, Any]) -> None:
        self.teachers: list[Mapping[str, Any]] = (
            recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
        )
        self.stages: list[Mapping[str, Any]] = recipe.get("stages", [])
        self.student: Mapping[str, Any] = recipe["student"]
        self.origins: dict[str, list[Mapping[str, Any]]] = {
            "teachers": lineage["teachers"],
            "stages": lineage.get("stages", []),
        }
        self.student_origin: Mapping[str, Any] = lineage["student"]
        self.dataset: str | None = lineage["dataset"]["id"]
        self.dataset_revision: str | None = lineage["dataset"]["revision"]

    @property
    def is_adapter(self) -> bool:
        """Tell whether the student is an adapter beside a base model."""
        return bool(self.student_origin.get("adapter"))

    @property
    def base_models(self) -> list[str]:
        """Return the Hub ids of the teachers and of what the student starts from; an adapter's base is the first."""
        teachers = [each["model"] for origin in self.origins["teachers"] for each in origin.get("members", [origin])]
        own = self.student_origin["model"]
        ids = [own, *teachers] if self.is_adapter else [*teachers, own]
        return list(dict.fromkeys(name for name in ids if name is not None))

    @property
    def soft_targets(self) -> list[str]:
        """Return the Hub ids of data sets of soft targets that have taught in a teacher's place."""
        ids = [(origin.get("soft_targets") or {}).get("id") for origin in self.origins["teachers"]]
        return [name for name in ids if name is not None]

    @property
    def has_local(self) -> bool:
        """Tell whether a model, or soft targets, came from a local folder."""
        pairs = [
            *zip(self.teachers, self.origins["teachers"], strict=True),
            *zip(self.stages, self.origins["stages"], strict=True),
            (self.student, self.student_origin),
        ]
        return any(
            (section.get("model") and origin["model"] is None)
            or (section.get("logits") and not (origin.get("soft_targets") or {}).get("id"))
            for section, origin in pairs
        )

    @property
    def teacher_words(self) -> str:
        """Return who taught, assistants included."""
        pairs = zip(self.teachers, self.origins["teachers"], strict=True)
        words = [model_words(section, origin) for section, origin in pairs]
        text = words[0] if len(words) == 1 else f"{len(words)} teachers ({'; '.join(words)})"
        between = zip(self.stages, self.origins["stages"], strict=True)
        return text + "".join(f", by way of {model_words(section, origin)}" for section, origin in between)

    @property
    def student_words(self) -> str:
        """Return what the student is."""
        return model_words(self.student, self.student_origin)


def inferred_lineage(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe alone tells of the lineage, for results that have none.

    What is on the Hub is told from what is local by the names; commits and licenses are not known.
    """

    def origin(section: Mapping[str, Any]) -> dict[str, Any]:
        model = section.get("model")
        is_on_hub = model is not None and not is_local(model)
        found: dict[str, Any] = {
            "model": model if is_on_hub else None,
            "revision": None,
            "license": None,
            "seed": None,
        }
        logits = section.get("logits")
        if logits is not None:
            found["soft_targets"] = {"id": None if is_local(logits) else logits, "revision": None}
        return found

    teachers = recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
    named = recipe["data"]["dataset"]
    return {
        "teachers": [origin(teacher) for teacher in teachers],
        "stages": [origin(stage) for stage in recipe.get("stages", [])],
        "student": origin(recipe["student"]),
        "dataset": {"id": None if named is None or is_local(named) else named, "revision": None},
    }


def lineage_table(origins: Origins, results: Results | None = None) -> str:
    """Return the table of what the student comes from: model or data, commit, license, seed, score."""
    metric = None if results is None else next(iter(results.student.metrics))
    scores = {} if results is None else _scores(origins, results)
    lines = ["| | what | commit | license | seed |", "| --- | --- | --- | --- | --- |"]
    if metric is not None:
        lines = [lines[0] + f" {metric} |", lines[1] + " ---: |"]
    count = len(origins.teachers)
    for place, (section, origin) in enumerate(zip(origins.teachers, origins.origins["teachers"], strict=True)):
        role = "teacher" if count == 1 else f"teacher-{place + 1}"
        what = _linked(section, origin) + ("" if section["training"] is None else ", trained here on the labels")
        lines.append(_line(role, what, origin, scores.get(role), metric))
    for place, (section, origin) in enumerate(zip(origins.stages, origins.origins["stages"], strict=True)):
        role = f"stage-{place + 1}"
        lines.append(_line(role, _linked(section, origin), origin, scores.get(role), metric))
    own = origins.student_origin
    lines.append(_line("student", _linked(origins.student, own), own, scores.get("student"), metric))
    if origins.dataset is not None and ":" not in origins.dataset:
        revision = origins.dataset_revision
        link = f"[{origins.dataset}]({_HUB}/datasets/{origins.dataset})"
        empty = " | | |" if metric is None else " | | | |"
        lines.append(f"| data | {link} | {_commit(f'datasets/{origins.dataset}', revision)}{empty}")
    return "\n".join(lines)


def _scores(origins: Origins, results: Results) -> dict[str, ModelResult]:
    teachers = {"teacher": results.teacher} if len(origins.teachers) == 1 else results.teachers
    return {**teachers, **results.stages, "student": results.student}


def model_words(section: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Say what a model is, without links."""
    if section.get("from_teacher"):
        return f"{layer_words(section['from_teacher'])} of it"
    if section.get("column"):
        return f"the column `{section['column']}` of the data"
    if section.get("logits"):
        shared, members = origin.get("soft_targets") or {}, origin.get("members") or []
        said_by = "; ".join(each["words"] for each in members) or "a teacher that is not named"
        who = f"{len(members)} teachers ({said_by}), by their" if len(members) > 1 else f"{said_by}, by its"
        return f"{who} soft targets `{shared.get('id') or last_name(section['logits'])}`"
    if section.get("function"):
        return "a function"
    addition = (" (a specialist)" if section.get("specialist") else "") + (
        " with an adapter" if origin.get("adapter") else ""
    )
    if section.get("model"):
        return f"`{origin['model'] or last_name(section['model'])}`" + addition
    config = section["config"]
    details = ", ".join(f"{name} {value}" for name, value in config.items() if name != "model_type")
    return f"a `{config['model_type']}`" + (f" ({details})" if details else "") + addition


def _linked(section: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    if section.get("from_teacher"):
        return model_words(section, origin).replace(" of it", " of its teacher")
    words = model_words(section, origin)
    if section.get("logits"):
        members = [each["model"] for each in origin.get("members", []) if each["model"] is not None]
        for name in members:
            words = words.replace(f"`{name}`", f"[{name}]({_HUB}/{name})")
        shared = origin.get("soft_targets") or {}
        if not shared.get("id"):
            return words + ", a local folder"
        name, pinned = shared["id"], f"/tree/{shared['revision']}" if shared.get("revision") else ""
        return words.replace(f"`{name}`", f"[{name}]({_HUB}/datasets/{name}{pinned})")
    if origin["model"] is None:
        return words + (", a local folder" if section.get("model") else "")
    return words.replace(f"`{origin['model']}`", f"[{origin['model']}]({_HUB}/{origin['model']})")


def _line(role: str, what: str, origin: Mapping[str, Any], result: ModelResult | None, metric: str | None) -> str:
    score = "-" if result is None or metric not in result.metrics else f"{result.metrics[metric]:.4f}"
    seed = "-" if origin.get("seed") is None else str(origin["seed"])
    license = origin.get("license_name") or origin.get("license") or "-"
    scores = [] if metric is None else [score]
    cells = [role, what, _commit(origin["model"], origin["revision"]), license, seed, *scores]
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _commit(path: str | None, revision: str | None) -> str:
    return "-" if path is None or revision is None else f"[{revision[:12]}]({_HUB}/{path}/tree/{revision})"


def layer_words(chosen: Mapping[str, Any]) -> str:
    """Say which layers a student is made of, and that it has fewer word pieces."""
    layers, number = chosen.get("layers"), chosen.get("num_layers")
    words = {"first": "first {}", "last": "last {}"}.get(chosen.get("strategy") or "", "{} evenly spaced")
    text = f"{words.format(number)} layers" if layers is None else f"layers {', '.join(map(str, layers))}"
    return f"{text} and the used word pieces" if chosen.get("vocabulary") else text
