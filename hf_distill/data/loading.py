"""Load the splits of a data set, and find its columns."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, LargeList, List, Value

from hf_distill.data.csv_files import csv_files, reading_options
from hf_distill.data.digits import sklearn_digits
from hf_distill.data.labels import MISSING_LABEL, index_labels, is_text
from hf_distill.data.splitting import KEYS, check_splits, draw
from hf_distill.data.unlabelled import with_unlabelled

_EVAL_SPLITS = ("validation", "valid", "dev", "test")
_FILE_TYPES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
_TEXTS = ("text", "sentence")
_TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"))
_LABEL_COLUMNS = ("label", "labels")
_TAG_COLUMNS = re.compile(r"(.*_)?(tags|labels)")
_WORD_COLUMNS = ("tokens", "words")


@dataclass(frozen=True)
class Columns:
    """The columns that matter. `inputs` are one text, a pair of texts, a list of words, or an image."""

    inputs: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Splits:
    """What a run is trained and evaluated on. Labels are class indices, -100 where missing.

    `test` is None if the data have no split of that role; results then come from `evaluation`. `warnings` say what
    makes these results mean less than they seem to.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset | None
    columns: Columns
    label_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def labelled(self) -> Dataset:
        """Return the training rows that have a label."""
        labels = self.train.with_format("numpy")["labels"][:]
        places = [place for place, label in enumerate(labels) if np.any(np.asarray(label) != MISSING_LABEL)]
        return self.train if len(places) == len(self.train) else self.train.select(places)

    def named(self) -> dict[str, Dataset]:
        """Return the splits that there are, by role."""
        present = {"train": self.train, "evaluation": self.evaluation}
        return present if self.test is None else {**present, "test": self.test}


def load_rows(
    *,
    dataset: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    path: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load all splits of a data set; separator and encoding of CSV files are found by looking if they are None.

    Raises:
        ValueError: there is no such data set, or it cannot be read.
    """
    if dataset == "sklearn:digits":
        return sklearn_digits()
    if dataset is not None and dataset.startswith("sklearn:"):
        raise ValueError(f"data.dataset: {dataset!r} is not known; of scikit-learn's data sets, sklearn:digits is")
    if dataset is not None and Path(dataset).exists():
        raise ValueError(
            f"data.dataset: {dataset} is a Hub id, and there is a file or folder of that name here: write data.path "
            "for it, or move it away"
        )
    try:
        if dataset is not None:
            loaded = datasets.load_dataset(dataset, name, revision=revision)
        else:
            assert path is not None
            loaded = _load_path(Path(path).expanduser(), separator, encoding)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = _reason(error, on_hub=dataset is not None)
        raise ValueError(f"data: cannot read {dataset or path}: {reason}") from error
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict({str(loaded.split or "train"): loaded})
    return DatasetDict({split: _in_usual_types(rows) for split, rows in splits.items()})


def _in_usual_types(rows: Dataset) -> Dataset:
    """Turn what few libraries write, and few functions take, into what means the same: views of text, decimals."""
    for name, feature in rows.features.items():
        dtype = str(getattr(feature, "dtype", ""))
        if dtype == "string_view":
            rows = rows.cast_column(name, Value("string"))
        elif dtype.startswith("decimal"):
            rows = rows.cast_column(name, Value("float64"))
        elif isinstance(feature, LargeList):
            rows = rows.cast_column(name, List(feature.feature))
    return rows


def _load_path(path: Path, separator: str | None, encoding: str | None) -> Dataset | DatasetDict:
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix not in _FILE_TYPES:
            raise ValueError(f"expected a file that ends in {', '.join(_FILE_TYPES)}, got {path.name}")
        options = reading_options([path], separator, encoding) if _FILE_TYPES[suffix] == "csv" else {}
        return datasets.load_dataset(_FILE_TYPES[suffix], data_files=str(path), **options)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    of_csv_files = datasets.load_dataset_builder(str(path)).name == "csv"
    options = reading_options(csv_files(path), separator, encoding) if of_csv_files else {}
    return datasets.load_dataset(str(path), **options)


def _reason(error: Exception, *, on_hub: bool) -> str:
    """Say in one line why a data set could not be read, and what helps."""
    cause = error.__cause__ or error
    if isinstance(cause, datasets.table.CastError):
        here, before = cause.table_column_names, cause.requested_column_names
        odd = [name for name in here if name not in before] or [name for name in before if name not in here]
        return (
            f"one file has the columns {', '.join(here)}, another one before it {', '.join(before)}"
            f"{f' ({odd[0]!r} is not in both)' if odd else ''}: give all the same columns with the same types"
        )
    said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    if "scripts are no longer supported" in said:
        return (
            f"{said.rstrip('.')}. No code of a data set is run: convert it to parquet files, or move the script away."
        )
    if "corresponds to no data" in said or "No columns to parse" in said:
        return "it has no rows"
    if isinstance(cause, UnicodeDecodeError):
        return f"{said}. Name the encoding of the file: data.encoding=cp1252"
    if on_hub:
        return f"{said.rstrip('.')}. Check the id and the connection; a local file or folder is named by data.path."
    if "Failed to parse string" in said or "changed from" in said:
        return f"{said.rstrip('.')}. Some rows hold numbers and others text in one column: make them one of the two."
    return said


def choose_splits(
    rows: DatasetDict, *, train: str, evaluation: str | float | None, test: str | float | None
) -> tuple[dict[str, str | float], dict[str, Dataset]]:
    """Pick the splits by name; `train[:90%]` and the like name a part of one.

    Raises:
        ValueError: there is no such split, or it is empty.
    """
    if evaluation is None:
        evaluation = next((name for name in _EVAL_SPLITS if name in rows and name != train), None)
        if evaluation is None:
            raise ValueError(
                f"data.eval_split is not set and cannot be guessed: the data have {', '.join(rows)}. Name a split, or "
                f"draw a part of {train} at random: data.eval_split: 0.1 (a tenth, of each class)"
            )
    picked = {"train": train, "evaluation": evaluation, "test": test}
    specs = {role: spec for role, spec in picked.items() if spec is not None}
    return specs, {role: split_of(rows, spec, KEYS[role]) for role, spec in specs.items() if isinstance(spec, str)}


def split_of(rows: DatasetDict, spec: str, key: str) -> Dataset:
    """Return a split, or a part of one."""
    name = spec.split("[")[0]
    if name not in rows:
        raise ValueError(
            f"data.{key}: the data have no split {name!r}, only {', '.join(rows)}"
            + (
                ""
                if key in ("train_split", "unlabelled.split")
                else "; a part of the training rows is a number without quotes, such as 0.1"
            )
        )
    try:
        instruction = datasets.ReadInstruction.from_spec(spec)
        (part,) = instruction.to_absolute({split: len(rows[split]) for split in rows})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"data.{key}: {spec!r} is not a split or a part of one, such as {name}[:90%]: {error}"
        ) from error
    whole = rows[name]
    chosen = range(len(whole))[part.from_ : part.to]
    if not chosen:
        raise ValueError(f"data.{key}: split {spec!r} has no rows, {name} has {len(whole)}")
    return whole if len(chosen) == len(whole) else whole.select(chosen)


def find_columns(
    dataset: Dataset,
    task: str,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """Take the columns that are named, and guess the others where only one guess is possible.

    Raises:
        ValueError: a named column is not there, or a guess is not possible.
    """
    label = _label_column(dataset, task, label_column)
    if task == "image-classification":
        images = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
        return Columns((_input_column(dataset, "image_column", image_column, images, "images"),), label)
    if task == "token-classification":
        words = [name for name, feature in dataset.features.items() if _is_text_list(feature) and name != label]
        usual = [name for name in _WORD_COLUMNS if name in words]
        guesses = usual if usual and text_column is None else words
        return Columns((_input_column(dataset, "text_column", text_column, guesses, "lists of words"),), label)
    texts = [name for name, feature in dataset.features.items() if is_text(feature) and name != label]
    if text_column is None and text_pair_column is None:
        pairs = [pair for pair in _TEXT_PAIRS if set(pair) <= set(texts)]
        if pairs:
            usual = [*map(" with ".join, pairs), *(name for name in _TEXTS if name in texts)]
            _named_or_only(dataset, "text_column", None, usual, "text")
            return Columns(pairs[0], label)
    first = _input_column(dataset, "text_column", text_column, texts, "text")
    if text_pair_column is None:
        return Columns((first,), label)
    return Columns((first, _input_column(dataset, "text_pair_column", text_pair_column, texts, "text")), label)


def _input_column(dataset: Dataset, key: str, named: str | None, fitting: Sequence[str], what: str) -> str:
    """Take a column that holds what it should and is not the label's: the one that is named, or the only one."""
    column = _named_or_only(dataset, key, named, fitting, what)
    if column not in fitting:
        others = f": {what} are in {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"data.{key} {column!r} is the label column or holds no {what}{others}")
    return column


def _label_column(dataset: Dataset, task: str, named: str | None) -> str | None:
    if named is not None:
        return _named_or_only(dataset, "label_column", named, [], "labels")
    is_tagging = task == "token-classification"
    usual = [name for name in dataset.column_names if is_tagging and _TAG_COLUMNS.fullmatch(name)]
    usual = [name for name in usual if isinstance(dataset.features[name], List)] or usual
    if not is_tagging:
        usual = [name for name in _LABEL_COLUMNS if name in dataset.column_names]
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return _named_or_only(dataset, "label_column", None, usual or classes, "labels")


def _named_or_only(dataset: Dataset, key: str, named: str | None, candidates: Sequence[str], what: str) -> str:
    if named is not None:
        if named not in dataset.column_names:
            raise ValueError(f"data.{key}: the data have no column {named!r}, only {', '.join(dataset.column_names)}")
        return named
    if len(candidates) == 1:
        return candidates[0]
    found = f"{', '.join(candidates)} all hold {what}" if candidates else f"no column clearly holds {what}"
    raise ValueError(
        f"data.{key} is not set and cannot be guessed: {found} among {', '.join(dataset.column_names)}. Name the one "
        "that is meant"
    )


def _is_text_list(feature: Any) -> bool:
    return isinstance(feature, List) and is_text(feature.feature)


def prepare_splits(
    rows: DatasetDict,
    task: str,
    *,
    train_split: str = "train",
    eval_split: str | float | None = None,
    test_split: str | float | None = None,
    split_seed: int = 42,
    max_train_rows: int | None = None,
    seed: int = 42,
    label_names: Sequence[str] | None = None,
    unlabelled: Dataset | None = None,
    **column_names: str | None,
) -> Splits:
    """Choose splits and columns, turn every kind of label into class indices, and add rows without labels.

    Raises:
        ValueError: a split, column or label is not as it should be.
    """
    specs, chosen = choose_splits(rows, train=train_split, evaluation=eval_split, test=test_split)
    columns = find_columns(chosen["train"], task, **column_names)
    for role, dataset in chosen.items():
        absent = [name for name in (*columns.inputs, columns.label) if name and name not in dataset.column_names]
        if absent:
            raise ValueError(f"data: the {role} split has no column {', '.join(absent)}, the train split has")
    assert columns.label is not None
    words = columns.inputs[0] if task == "token-classification" else None
    indexed, names = index_labels(chosen, columns.label, words=words, label_names=label_names)
    indexed |= _drawn(indexed["train"], columns.inputs, specs, split_seed)
    splits = {role: indexed[role] for role in specs}
    if max_train_rows is not None and max_train_rows < len(splits["train"]):
        splits["train"] = splits["train"].shuffle(seed=seed).select(range(max_train_rows))
        specs["train"] = f"{train_split}, data.max_train_rows: {max_train_rows}"
    if unlabelled is not None:
        splits["train"] = with_unlabelled(splits["train"], unlabelled, columns.inputs)
    found = check_splits(splits, specs, columns.inputs, names)
    return Splits(splits["train"], splits["evaluation"], splits.get("test"), columns, names, tuple(found))


def _drawn(rows: Dataset, inputs: Sequence[str], specs: Mapping[str, str | float], seed: int) -> dict[str, Dataset]:
    """Draw the splits that are fractions of the training split, and return them with what is left of it, by role."""
    fractions = {role: spec for role, spec in specs.items() if isinstance(spec, float)}
    if not fractions:
        return {}
    parts = dict(zip(("train", *fractions), draw(rows, inputs, list(fractions.values()), seed), strict=True))
    for role, fraction in fractions.items():
        if not len(parts[role]):
            raise ValueError(
                f"data.{KEYS[role]}: {fraction} of {specs['train']} draws no row: no class has enough different "
                "inputs with a label. Name a split instead"
            )
    return {role: rows.select(part) for role, part in parts.items()}


def reorder_labels(splits: Splits, order: Sequence[int]) -> Splits:
    """Give the classes other indices."""
    new_index = {old: new for new, old in enumerate(order)}

    def convert(labels: Any) -> Any:
        return [convert(label) for label in labels] if isinstance(labels, list) else new_index.get(labels, labels)

    reordered = {}
    for role, rows in splits.named().items():
        feature = rows.features["labels"]
        labels = convert(list(rows.with_format(None)["labels"]))
        reordered[role] = rows.remove_columns("labels").add_column("labels", labels, feature=feature)
    return replace(
        splits,
        train=reordered["train"],
        evaluation=reordered["evaluation"],
        test=reordered.get("test"),
        label_names=tuple(splits.label_names[old] for old in order),
    )


def fingerprint(splits: Splits, soft_targets: str | None = None) -> str:
    """Return a hash by which changed data are noticed.

    It covers the number of rows, every label, and the inputs and soft targets of up to 1,000 rows of each split, evenly
    spaced: enough to notice another version of a data set, and quick on a large one.
    """
    names = [*splits.columns.inputs, *([] if soft_targets is None else [soft_targets])]
    digest = hashlib.sha256(repr(splits.label_names).encode())
    for role, rows in splits.named().items():
        digest.update(f"{role} {len(rows)}".encode())
        digest.update(repr(list(rows.with_format(None)["labels"])).encode())
        sample = rows.select(range(0, len(rows), max(1, len(rows) // 1000))).select_columns(names)
        for name in splits.columns.inputs:
            if isinstance(sample.features[name], Image):
                sample = sample.cast_column(name, Image(decode=False))
        for row in sample.with_format(None):
            for value in row.values():
                digest.update(_image_bytes(value) if isinstance(value, dict) else repr(value).encode())
    return digest.hexdigest()


def _image_bytes(stored: dict[str, Any]) -> bytes:
    """Return an undecoded image's bytes; where its file lies may change."""
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
