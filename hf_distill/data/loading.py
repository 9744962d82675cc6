"""Load the splits of a data set, find its columns, and bring its labels into one form."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

MISSING_LABEL = -100
_EVAL_SPLITS = ("validation", "valid", "dev", "test")
_FILE_TYPES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
_TEXT_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"))
_LABEL_COLUMNS = ("label", "labels")
_TAG_COLUMNS = ("ner_tags", "tags", "labels", "pos_tags")


@dataclass(frozen=True)
class Columns:
    """The columns that matter. `inputs` are one text, a pair of texts, a list of words, or an image."""

    inputs: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Splits:
    """What a run trains and is judged on. Labels are class indices, -100 where missing.

    `test` is None if the data have no split of that role; results then come from `evaluation`.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset | None
    columns: Columns
    label_names: tuple[str, ...]

    def named(self) -> dict[str, Dataset]:
        """Return the splits that there are, by role."""
        present = {"train": self.train, "evaluation": self.evaluation}
        return present if self.test is None else {**present, "test": self.test}


def load_rows(
    *, dataset: str | None = None, name: str | None = None, revision: str | None = None, path: str | None = None
) -> DatasetDict:
    """Load all splits of a data set.

    Args:
        dataset: a Hub id, or `sklearn:digits`, the handwritten digits that come with scikit-learn.
        name: the configuration of a Hub data set.
        revision: branch, tag or commit on the Hub.
        path: instead of `dataset`, a parquet, csv, tsv, json or jsonl file; a folder of such files, of images in a
            folder for each class, or one that `save_to_disk` wrote.

    Raises:
        ValueError: there is no such data set, or it cannot be read.
    """
    if dataset == "sklearn:digits":
        return _sklearn_digits()
    if dataset is not None and dataset.startswith("sklearn:"):
        raise ValueError(f"data.dataset: {dataset!r} is not known; of scikit-learn's data sets, sklearn:digits is")
    try:
        if dataset is not None:
            loaded = datasets.load_dataset(dataset, name, revision=revision)
        else:
            assert path is not None
            loaded = _load_path(Path(path).expanduser())
    except (datasets.exceptions.DatasetsError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"data: cannot read {dataset or path}: {str(cause).splitlines()[0]}. A column that holds numbers in some "
            "rows and text in others is a usual cause: make it one of them."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"data: cannot read {dataset or path}: {str(error).splitlines()[0]}") from error
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({str(loaded.split or "train"): loaded})


def _load_path(path: Path) -> Dataset | DatasetDict:
    if not path.exists():
        raise ValueError("there is no such file or folder")
    if path.is_file():
        if path.suffix not in _FILE_TYPES:
            raise ValueError(f"expected a file that ends in {', '.join(_FILE_TYPES)}, got {path.name}")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return datasets.load_dataset(_FILE_TYPES[path.suffix], data_files=str(path), **options)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path))


def _sklearn_digits() -> DatasetDict:
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(np.arange(len(pixels)), test_size=450, random_state=0, stratify=digits.target)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(10)])})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(pixels[row]) for row in rows], "label": digits.target[rows].tolist()},
                features=features,
            )
            for split, rows in (("train", train), ("test", test))
        }
    )


def choose_splits(
    rows: DatasetDict,
    *,
    train: str,
    evaluation: str | None,
    test: str | None,
    max_train_rows: int | None,
    seed: int,
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Pick the splits by name; `train[:90%]` and the like name a part of one.

    Args:
        rows: all splits.
        train: the training split.
        evaluation: the split that the models are judged on; None takes validation, valid, dev or test.
        test: a split for the final results, if it is to be another than `evaluation`.
        max_train_rows: keep so many training rows, drawn at random.
        seed: decides which.

    Raises:
        ValueError: there is no such split, or it is empty.
    """
    if evaluation is None:
        evaluation = next((name for name in _EVAL_SPLITS if name in rows and name != train), None)
        if evaluation is None:
            raise ValueError(
                f"data.eval_split is not set and cannot be guessed: the data have {list(rows)}. Name one, or divide "
                f"one: train_split: '{train}[:90%]' and eval_split: '{train}[90%:]'."
            )
    chosen = [_split(rows, spec, key) for key, spec in (("train_split", train), ("eval_split", evaluation))]
    tested = None if test is None else _split(rows, test, "test_split")
    train_rows = chosen[0]
    if max_train_rows is not None and max_train_rows < len(train_rows):
        train_rows = train_rows.shuffle(seed=seed).select(range(max_train_rows))
    return train_rows, chosen[1], tested


def _split(rows: DatasetDict, spec: str, key: str) -> Dataset:
    name = spec.split("[")[0]
    if name not in rows:
        raise ValueError(f"data.{key}: the data have no split {name!r}, only {', '.join(rows)}")
    try:
        instruction = datasets.ReadInstruction.from_spec(spec)
        (part,) = instruction.to_absolute({split: len(rows[split]) for split in rows})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"data.{key}: {spec!r} is not a split or a part of one, such as {name}[:90%]: {error}"
        ) from error
    whole = rows[name]
    dataset = (
        whole
        if (part.from_, part.to) in ((None, None), (0, len(whole)))
        else whole.select(range(part.from_ or 0, len(whole) if part.to is None else part.to))
    )
    if len(dataset) == 0:
        raise ValueError(f"data.{key}: split {spec!r} has no rows")
    return dataset


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
        return Columns((_named_or_only(dataset, "image_column", image_column, images, "images"),), label)
    if task == "token-classification":
        words = [name for name, feature in dataset.features.items() if _is_text_list(feature) and name != label]
        words = ["tokens"] if "tokens" in words else words
        return Columns((_named_or_only(dataset, "text_column", text_column, words, "lists of words"),), label)
    texts = [name for name, feature in dataset.features.items() if _is_text(feature) and name != label]
    if text_column is None and text_pair_column is None:
        pair = next((pair for pair in _TEXT_PAIRS if set(pair) <= set(texts)), None)
        if pair is not None:
            return Columns(pair, label)
    first = _named_or_only(dataset, "text_column", text_column, texts, "text")
    if text_pair_column is None:
        return Columns((first,), label)
    return Columns((first, _named_or_only(dataset, "text_pair_column", text_pair_column, [], "text")), label)


def _label_column(dataset: Dataset, task: str, named: str | None) -> str | None:
    if named is not None:
        return _named_or_only(dataset, "label_column", named, [], "labels")
    usual = _TAG_COLUMNS if task == "token-classification" else _LABEL_COLUMNS
    present = [name for name in usual if name in dataset.column_names]
    if present:
        return present[0]
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    return _named_or_only(dataset, "label_column", None, classes, "labels")


def _named_or_only(dataset: Dataset, key: str, named: str | None, candidates: Sequence[str], what: str) -> str:
    if named is not None:
        if named not in dataset.column_names:
            raise ValueError(f"data.{key}: the data have no column {named!r}, only {', '.join(dataset.column_names)}")
        return named
    if len(candidates) == 1:
        return candidates[0]
    found = f"{', '.join(candidates)} all hold {what}" if candidates else f"no column clearly holds {what}"
    raise ValueError(f"data.{key} is not set and cannot be guessed: {found} among {', '.join(dataset.column_names)}")


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_text_list(feature: Any) -> bool:
    return isinstance(feature, List) and _is_text(feature.feature)


def prepare_splits(
    rows: DatasetDict,
    task: str,
    *,
    train_split: str = "train",
    eval_split: str | None = None,
    test_split: str | None = None,
    max_train_rows: int | None = None,
    seed: int = 42,
    label_names: Sequence[str] | None = None,
    **column_names: str | None,
) -> Splits:
    """Choose splits and columns, and turn every kind of label into class indices.

    Args:
        rows: all splits.
        task: `text-classification`, `token-classification` or `image-classification`.
        train_split: see `choose_splits`, as for the next four.
        eval_split: as above.
        test_split: as above.
        max_train_rows: as above.
        seed: as above.
        label_names: names of the classes in their order, for labels that are plain numbers, or to fix the order of
            labels that are text.
        **column_names: see `find_columns`.

    Raises:
        ValueError: a split, column or label is not as it should be.
    """
    train, evaluation, test = choose_splits(
        rows, train=train_split, evaluation=eval_split, test=test_split, max_train_rows=max_train_rows, seed=seed
    )
    columns = find_columns(train, task, **column_names)
    splits = Splits(train, evaluation, test, columns, tuple(label_names or ()))
    for role, dataset in splits.named().items():
        absent = [name for name in (*columns.inputs, columns.label) if name and name not in dataset.column_names]
        if absent:
            raise ValueError(f"data: the {role} split has no column {', '.join(absent)}, the train split has")
    return _with_class_indices(splits)


def _with_class_indices(splits: Splits) -> Splits:
    column = splits.columns.label
    assert column is not None
    kinds = {role: _label_kind(dataset, column) for role, dataset in splits.named().items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"data.label_column {column!r} holds {_listed(kinds)}: make them one type")
    kind = kinds["train"]
    feature = _item_feature(splits.train, column)
    given = splits.label_names
    if kind == "classes":
        names = tuple(feature.names)
        for role, dataset in splits.named().items():
            other = tuple(_item_feature(dataset, column).names)
            if other != names:
                raise ValueError(f"data: the {role} split has the classes {list(other)}, the train split {list(names)}")
        if given and len(given) != len(names):
            raise ValueError(f"data.label_names has {len(given)} names, the data have {len(names)} classes")
        index = {i: i for i in range(len(names))}
        names = given or names
    else:
        values = _distinct(splits.train, column)
        if kind == "text":
            _refuse_mixed(values, column, given)
        if given and kind == "numbers":
            index = {i: i for i in range(len(given))}
            names = given
        else:
            names = given or tuple(str(value) for value in values)
            index = {value: i for i, value in enumerate(given or values)}
    if len(names) < 2:
        raise ValueError(
            f"data.label_column {column!r} has {len(names)} class in the train split ({', '.join(names) or 'none'}): "
            "a classifier needs two or more"
        )
    indexed = {role: _indexed(dataset, role, column, index) for role, dataset in splits.named().items()}
    return replace(
        splits,
        train=indexed["train"],
        evaluation=indexed["evaluation"],
        test=indexed.get("test"),
        label_names=names,
    )


def _item_feature(dataset: Dataset, column: str) -> Any:
    feature = dataset.features[column]
    return feature.feature if isinstance(feature, List) else feature


def _label_kind(dataset: Dataset, column: str) -> str:
    feature = _item_feature(dataset, column)
    if isinstance(feature, ClassLabel):
        return "classes"
    if _is_text(feature):
        return "text"
    dtype = str(getattr(feature, "dtype", feature))
    if dtype.startswith(("int", "uint", "bool")):
        return "numbers"
    raise ValueError(
        f"data.label_column {column!r} holds {dtype}: a recipe's labels are classes, whole numbers or text. For "
        "several labels a row or for regression, use DistillationTrainer from Python."
    )


def _listed(kinds: dict[str, str]) -> str:
    return ", ".join(f"{kind} in the {role} split" for role, kind in kinds.items())


def _distinct(dataset: Dataset, column: str) -> list[Any]:
    values = dataset.with_format("arrow")[:][column].combine_chunks()
    if isinstance(dataset.features[column], List):
        values = values.flatten()
    return sorted(value for value in values.unique().to_pylist() if not _is_missing(value))


def _refuse_mixed(values: Sequence[str], column: str, given: Sequence[str]) -> None:
    numeric = [value for value in values if value.strip().lstrip("-").isdigit()]
    if numeric and len(numeric) < len(values) and not given:
        text = [value for value in values if value not in numeric]
        raise ValueError(
            f"data.label_column {column!r} mixes numbers ({', '.join(numeric[:4])}) and text ({', '.join(text[:4])}): "
            "make them one, or list all of them in data.label_names if they are all names"
        )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, int) and value in (MISSING_LABEL, -1))


def _indexed(dataset: Dataset, role: str, column: str, index: dict[Any, int]) -> Dataset:
    """Replace the label column by class indices under the name `labels`."""

    def convert(value: Any) -> int:
        if _is_missing(value):
            return MISSING_LABEL
        if value not in index:
            raise ValueError(
                f"data: label {value!r} in column {column!r} of the {role} split is none of the {len(index)} classes "
                f"{list(index)[:20]}"
            )
        return index[value]

    is_list = isinstance(dataset.features[column], List)
    values = dataset.with_format(None)[column]
    converted = [[convert(item) for item in value] for value in values] if is_list else [convert(v) for v in values]
    feature = List(Value("int64")) if is_list else Value("int64")
    dataset = dataset.remove_columns([name for name in {column, "labels"} if name in dataset.column_names])
    return dataset.add_column("labels", converted, feature=feature)
