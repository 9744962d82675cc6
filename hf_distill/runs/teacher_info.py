"""What is known of the teachers whose soft targets are kept: `teacher.json`, beside them.

It holds no path of a machine: a model is known by its Hub id, or by the last name of its folder.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_distill.hub.card.origins import model_words
from hf_distill.runs.recipe.schema import Teacher
from hf_distill.runs.workspace import write_whole

INFO_FILE = "teacher.json"
_FORMAT = 1
_MOST_LETTERS = 300
_MOST = 1e15
_TEXTS = ("model", "revision", "license", "license_name", "license_link")
_NUMBERS = ("seed", "num_parameters", "num_bytes", "train_seconds")


def info_of_model(
    section: Teacher, origin: Mapping[str, Any], model: PreTrainedModel | None, seconds: float | None
) -> dict[str, Any]:
    """Tell what is known of a teacher."""
    parameters = None if model is None else list(model.parameters())
    return {
        "words": model_words(section.model_dump(), origin),
        **{name: origin.get(name) for name in _TEXTS},
        "is_specialist": section.specialist is not None,
        "num_parameters": None if parameters is None else sum(each.numel() for each in parameters),
        "num_bytes": None if parameters is None else sum(each.numel() * each.element_size() for each in parameters),
        "train_seconds": seconds,
    }


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write what is known of the teachers beside their soft targets, if that folder can be written."""
    text = json.dumps({"format": _FORMAT, **info}, indent=2) + "\n"
    with contextlib.suppress(OSError):
        if not (folder / INFO_FILE).exists() or (folder / INFO_FILE).read_text(encoding="utf-8") != text:
            write_whole(folder / INFO_FILE, text)


def read_info(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    """Read what is known of the teachers of some soft targets.

    The file may come from anywhere: what in it is no fact of the kind that `write_info` is given is left out.
    """
    try:
        found = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = {}
    known = found if isinstance(found, dict) and found.get("format") == _FORMAT else {}
    stated = known.get("teachers")
    teachers = key["teachers"]
    if not (isinstance(stated, list) and len(stated) == len(teachers)):
        stated = [{}] * len(teachers)
    return {
        "teachers": [_sound(each, of_key) for each, of_key in zip(stated, teachers, strict=True)],
        "recipe": _text(known.get("recipe")),
        "task": _text(known.get("task")),
        "data": _data(known.get("data")),
        "seed": _number(known.get("seed")),
        "views": _number(known.get("views")),
    }


def _sound(stated: Any, of_key: Mapping[str, Any]) -> dict[str, Any]:
    stated = stated if isinstance(stated, dict) else {}
    config = of_key.get("config")
    kind = config.get("model_type") if isinstance(config, dict) else None
    return {
        "words": _text(stated.get("words")) or (f"a `{kind}`" if kind else "a teacher that is not named"),
        **{name: _text(stated.get(name)) for name in _TEXTS},
        **{name: _number(stated.get(name)) for name in _NUMBERS},
        "is_specialist": of_key.get("specialist") is not None,
    }


def _data(stated: Any) -> dict[str, Any]:
    if not isinstance(stated, dict):
        return {}
    rows, augment = stated.get("num_rows"), stated.get("augment")
    rows = rows if isinstance(rows, dict) else {}
    texts = ("id", "revision", "name", "train_split", "background")
    return {
        **{name: _text(stated.get(name)) for name in texts},
        **{name: _text(stated.get(name)) or _number(stated.get(name)) for name in ("eval_split", "test_split")},
        **{name: _number(stated.get(name)) for name in ("max_train_rows", "max_length")},
        "augment": {str(name): _plain(value) for name, value in augment.items()} if isinstance(augment, dict) else None,
        "num_rows": {role: _number(rows.get(role)) or 0 for role in ("train", "evaluation", "test") if role in rows},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool) else _number(value)


def _text(value: Any) -> str | None:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return text if 0 < len(text) <= _MOST_LETTERS else None


def _number(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < _MOST else None
