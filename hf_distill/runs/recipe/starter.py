"""A recipe to start from, made by looking at somebody's data."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Image, List
from jinja2 import Environment, StrictUndefined, Template
from transformers import AutoConfig, AutoTokenizer

from hf_distill.data.labels import is_text
from hf_distill.data.loading import find_columns, load_rows
from hf_distill.models.sources import first_line
from hf_distill.teachers.labels import names_in_order

_EVALUATION = ("validation", "valid", "dev", "test")
_TEXT_TEACHER = "microsoft/MiniLM-L12-H384-uncased"
_LIKE_LABELS = re.compile("label|class|category|target|sentiment|topic|intent", re.IGNORECASE)
_LEAST_STEPS = 400  # of a teacher's training
_NARROW = 512  # hidden units below which a model takes a higher learning rate
_FEW_ROWS = 1_000  # of which a tenth would be too few to compare models on
_MOST_CLASSES = 200
_TOKENS_OF_A_WORD = 1.4


class Starter(NamedTuple):
    """A recipe to start from.

    Attributes:
        text: the YAML, with comments.
        found: what was found by looking, a line each.
    """

    text: str
    found: list[str]


def starter(data: Path, teacher: str | None, name: str) -> Starter:
    """Look at data and write a recipe for them.

    Args:
        data: a CSV, TSV, JSON or parquet file, or a folder of such files or of images by class.
        teacher: the Hub id or folder of a model; None: one that is usual for the task.
        name: of the recipe, and of its output folder.

    Raises:
        ValueError: the data cannot be read, or hold nothing to classify.
    """
    splits = load_rows(path=str(data))
    train = splits["train"] if "train" in splits else splits[next(iter(splits))]
    task = _task(train)
    columns = _columns(train, task)
    labels = _labels(train, columns["label_column"])
    eval_split: str | float | None = next((each for each in _EVALUATION if each in splits), None)
    found = [f"{task}, {len(train):,} rows with {len(labels)} classes: {_some(labels)}"]
    found += [f"{key.removesuffix('_column')} in the column {value!r}" for key, value in columns.items()]
    if eval_split is None:
        eval_split = 0.1 if len(train) >= _FEW_ROWS else 0.2
        found.append(f"no split to evaluate on: {eval_split:.0%} of the rows are drawn for it")
    of_models = _of_images if task == "image-classification" else _of_text
    text = _template().render(
        data_name=data.name,
        name=name,
        task=task,
        path=str(data),
        columns=columns,
        train_split="train" if "train" in splits else next(iter(splits)),
        eval_split=eval_split,
        **of_models(train, columns, teacher, labels, found),
    )
    return Starter(text + "\n", found)


def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
    return environment.from_string(Path(__file__).with_name("starter.yaml.jinja").read_text(encoding="utf-8"))


# ---- The data ----


def _task(rows: Dataset) -> str:
    features = rows.features.values()
    if any(isinstance(feature, Image) for feature in features):
        return "image-classification"
    if any(isinstance(feature, List) and is_text(feature.feature) for feature in features):
        return "token-classification"
    if any(is_text(feature) for feature in features):
        return "text-classification"
    raise ValueError(f"data: no column holds images or text, only {', '.join(rows.column_names)}")


def _columns(rows: Dataset, task: str) -> dict[str, str]:
    """Guess the columns, also where a run would ask for their names."""
    label = next((name for name in ("label", "labels") if name in rows.column_names), None) or _label_column(rows, task)
    if task == "text-classification":
        texts = [name for name, feature in rows.features.items() if is_text(feature) and name != label]
        if not texts:
            raise ValueError(f"data: only {label!r} holds text, and its values look like classes")
        usual = next((name for name in ("text", "sentence") if name in texts), None)
        return {"text_column": usual or max(texts, key=lambda name: _mean_length(rows, name)), "label_column": label}
    inputs = find_columns(rows, task, label_column=label).inputs
    return {"image_column" if task == "image-classification" else "text_column": inputs[0], "label_column": label}


def _label_column(rows: Dataset, task: str) -> str:
    if task == "token-classification":
        return str(find_columns(rows, task).label)
    few = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel) or _has_few(rows, name)]
    if not few:
        raise ValueError(
            f"data: no column looks like classes (at most {_MOST_CLASSES} values, each in several rows) among "
            f"{', '.join(rows.column_names)}: call it label, or write the recipe by hand"
        )
    named = [
        name for name in few if re.search("label|class|category|target|sentiment|topic|intent", name, re.IGNORECASE)
    ]
    return (named or sorted(few, key=lambda name: len(rows.unique(name))))[0]


def _has_few(rows: Dataset, name: str) -> bool:
    dtype = str(getattr(rows.features[name], "dtype", ""))
    if not dtype.startswith(("string", "large_string", "int", "bool")):
        return False
    number = len(rows.unique(name))
    return 2 <= number <= min(_MOST_CLASSES, len(rows) // 2)


def _labels(rows: Dataset, name: str) -> list[str]:
    feature: Any = rows.features[name]
    feature = feature.feature if isinstance(feature, List) else feature
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = rows.with_format(None)[name]
    each = {item for value in values for item in (value if isinstance(value, list) else [value])} - {None, ""}
    return sorted(map(str, each))


def _mean_length(rows: Dataset, name: str) -> float:
    some = rows.select(range(min(len(rows), 1_000))).with_format(None)[name]
    return float(np.mean([len(value or "") for value in some]))


# ---- The models ----


def _of_text(
    rows: Dataset, columns: Mapping[str, str], teacher: str | None, labels: list[str], found: list[str]
) -> dict[str, Any]:
    name = teacher or _TEXT_TEACHER
    config = None if teacher is None else _config(teacher)
    num_layers = 12 if config is None else int(getattr(config, "num_hidden_layers", 12))
    length = _length(rows, columns["text_column"], name, is_at_hand=config is not None)
    found.append(f"95% of the texts have at most {length} tokens" + (", by their words" if config is None else ""))
    known = set() if config is None else {each.casefold() for each in names_in_order(config.id2label)}
    is_ready = known == {each.casefold() for each in labels}
    if is_ready:
        found.append(f"{name} knows these classes: it teaches as it is")
    return {
        "teacher": name,
        "is_ready": is_ready,
        "num_layers": num_layers,
        "layers": sorted({round(place * (num_layers - 1) / 2) for place in range(3)}),
        "max_length": length,
        "image_size": None,
        "teacher_rate": "5.0e-5" if getattr(config, "hidden_size", 384) > _NARROW else "1.0e-4",
        **_lengths_of_training(len(rows)),
    }


def _of_images(
    rows: Dataset, columns: Mapping[str, str], teacher: str | None, labels: list[str], found: list[str]
) -> dict[str, Any]:
    undecoded = rows.select_columns(columns["image_column"]).cast_column(columns["image_column"], Image(decode=False))
    some = undecoded.select(range(0, len(rows), max(len(rows) // 200, 1)))
    sides = [side for row in some for side in _sides(row[columns["image_column"]])]
    if not sides:
        raise ValueError("data: none of the images can be read")
    size = int(min(max(round(float(np.median(sides)) / 8) * 8, 16), 64))
    found.append(f"images of {int(min(sides)):,} to {int(max(sides)):,} pixels on a side")
    config = None if teacher is None else _config(teacher)
    num_layers = int(getattr(config, "num_hidden_layers", 12))
    known = set() if config is None else {each.casefold() for each in names_in_order(config.id2label)}
    return {
        "teacher": teacher,
        "is_ready": known == {each.casefold() for each in labels},
        "num_layers": num_layers,
        "layers": sorted({round(place * (num_layers - 1) / 3) for place in range(4)}),
        "max_length": None,
        "image_size": size,
        "teacher_rate": "5.0e-5",
        **(
            {"num_epochs": 20, "teacher_epochs": 20, "batch_size": 32}
            if teacher is None
            else _lengths_of_training(len(rows))
        ),
    }


def _lengths_of_training(num_rows: int) -> dict[str, int]:
    """Return batch size and epochs: enough steps where rows are few, few epochs where they are many."""
    batch_size = 16 if num_rows < _FEW_ROWS else 32
    epochs = min(max(-(-_LEAST_STEPS * batch_size // num_rows), 3), 20)
    return {"batch_size": batch_size, "teacher_epochs": epochs, "num_epochs": -(-3 * epochs // 2)}


def _sides(stored: Any) -> tuple[int, ...]:
    try:
        with PIL.Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"]) as image:
            return image.size
    except Exception:  # PIL raises errors of many kinds; `check` names the images that cannot be read
        return ()


def _length(rows: Dataset, column: str, name: str, *, is_at_hand: bool) -> int:
    """Return the number of tokens, a multiple of 16, that covers 95 % of some of the texts."""
    some = rows.select(range(0, len(rows), max(len(rows) // 2_000, 1))).with_format(None)[column]
    if is_at_hand:
        tokenizer = AutoTokenizer.from_pretrained(name)
        is_words = isinstance(some[0], list)
        encoded = tokenizer([value or "" for value in some], is_split_into_words=is_words, verbose=False)["input_ids"]
        lengths = [len(ids) for ids in encoded]
    else:
        words = (value if isinstance(value, list) else (value or "").split() for value in some)
        lengths = [round(_TOKENS_OF_A_WORD * len(each)) + 2 for each in words]
    return int(min(max(-(-int(np.percentile(lengths, 95)) // 16) * 16, 16), 512))


def _config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"--teacher: cannot load {name!r}: {first_line(error)}") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
