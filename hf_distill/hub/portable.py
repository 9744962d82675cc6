"""A recipe as strangers may see it: paths of one machine reduced to their last name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODELS = ("teacher", "stages", "student")
# Fields that may hold the id of something on the Hub or a path; all others are paths only if they look like one.
_SOURCES = ("model", "processor", "dataset", "logits")
_LABELS = (
    "label_names",
    "teacher_label_map",
    "dustbin",
)  # a label may look like a path, as the tag of a full stop does
_LOOKS_LOCAL = re.compile(r"[/\\~]|\.{1,2}(?:[/\\]|$)|[A-Za-z]:[/\\]|file:")


def portable(recipe: Mapping[str, Any], lineage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a resolved recipe whose local paths are reduced to their last name, and that publishes nothing itself.

    What is named there can then be asked for, and neither the folders nor the user of the machine are told. Its `hub`
    is left out: whoever repeats the run would push to somebody else's repository. Twice is the same as once.
    """
    known = lineage or {}
    reduced: dict[str, Any] = {}
    for key, value in recipe.items():
        if key == "hub":
            continue
        if key in _MODELS:
            reduced[key] = _models(value, _from_hub(key, known))
        elif key == "data":
            came_from_hub = known["dataset"].get("id") is not None if known.get("dataset") else None
            reduced[key] = _section(value, came_from_hub)
        elif key == "metrics":
            reduced[key] = [_metric(metric) for metric in value]
        elif key == "output_dir":
            reduced[key] = last_name(str(value))
        else:
            reduced[key] = _anything(value)
    return reduced


def is_local(source: str) -> bool:
    """Tell whether a model's or data set's name is a path: by its form, or because there is such a file or folder."""
    return bool(_LOOKS_LOCAL.match(source)) or Path(source).expanduser().exists()


def last_name(path: str) -> str:
    """Return the last part of a path of any system; `here` for one that has none, such as `..`."""
    name = re.split(r"[/\\]", path.removeprefix("file:").rstrip("/\\"))[-1]
    return "here" if name in ("", ".", "..") or name.startswith("~") or re.fullmatch("[A-Za-z]:", name) else name


def _from_hub(key: str, lineage: Mapping[str, Any]) -> list[bool | None]:
    """Return for each model of a section whether it came from the Hub, None where that is not known."""
    entries: dict[str, list[Any]] = {"teacher": lineage.get("teachers", []), "student": [lineage.get("student")]}
    return [None if entry is None else _is_from_hub(entry) for entry in entries.get(key, [])]


def _is_from_hub(entry: Mapping[str, Any]) -> bool:
    shared = entry.get("soft_targets")
    return (entry.get("model") if shared is None else shared.get("id")) is not None


def _models(value: Any, from_hub: list[bool | None]) -> Any:
    if isinstance(value, list):
        places = [*from_hub, *[None] * len(value)]
        return [_section(section, place) for section, place in zip(value, places, strict=False)]
    return _section(value, from_hub[0] if from_hub else None)


def _section(section: Any, from_hub: bool | None) -> Any:
    if not isinstance(section, Mapping):
        return section
    reduced: dict[str, Any] = {}
    for key, value in section.items():
        if key == "path" and isinstance(value, str):
            reduced[key] = last_name(value)
        elif key in _SOURCES and isinstance(value, str):
            known = from_hub if key != "processor" else None
            reduced[key] = last_name(value) if (is_local(value) if known is None else not known) else value
        elif key == "unlabelled":
            reduced[key] = _section(value, None)
        else:
            reduced |= _anything({key: value})
    return reduced


def _metric(metric: Any) -> Any:
    """Reduce a metric's folder to its last name, written as a path: the name alone would be a metric on the Hub."""
    if isinstance(metric, Mapping):
        return {**metric, "name": _metric(metric["name"])}
    return f"./{last_name(metric)}" if _LOOKS_LOCAL.match(metric) else metric


def _anything(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: part if key in _LABELS else _anything(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_anything(part) for part in value]
    if isinstance(value, str) and _LOOKS_LOCAL.match(value):
        return last_name(value)
    return value
