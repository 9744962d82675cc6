"""Turn every kind of label - classes, whole numbers, text, one for a row or for each word - into class indices."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, List, Value

MISSING_LABEL = -100


def index_labels(
    splits: Mapping[str, Dataset], column: str, *, words: str | None = None, label_names: Sequence[str] | None = None
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Replace the label column of each split by class indices under the name `labels`, -100 where one is missing.

    None, an empty text, -1 and -100 are missing labels. The classes are those of the training split.

    Raises:
        ValueError: labels are of an unknown kind or of several, are none of the training split's, or are too few.
    """
    names, index = _classes(splits, column, tuple(label_names or ()), has_lists=words is not None)
    if len(names) < 2:
        raise ValueError(
            f"data.label_column {column!r} has too few classes in the train split ({', '.join(names) or 'none'}): a "
            "classifier needs two or more. An empty label, -1 and -100 count as missing."
        )
    indexed = {role: _indexed(dataset, role, column, index, words) for role, dataset in splits.items()}
    for role, dataset in indexed.items():
        if role != "train" and all(label == MISSING_LABEL for label in _flat(dataset["labels"])):
            raise ValueError(
                f"data: no row of the {role} split has a label in column {column!r}, so no model "
                "can be evaluated on it: choose another split"
            )
    return indexed, names


def is_text(feature: Any) -> bool:
    """Tell whether a column's feature is text."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _classes(
    splits: Mapping[str, Dataset], column: str, given: tuple[str, ...], *, has_lists: bool
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the names of the classes, and the index of each value that the column may hold."""
    if len(set(given)) < len(given):
        raise ValueError(f"data.label_names names a class twice: {list(given)}")
    kinds = {role: _kind(dataset, column, has_lists) for role, dataset in splits.items()}
    kind = kinds["train"]
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{kind} in the {role} split" for role, kind in kinds.items())
        raise ValueError(f"data.label_column {column!r} holds {listed}: make them one type")
    if kind == "classes":
        names = _class_names(splits, column, given)
        return names, {i: i for i in range(len(names))}
    if given and kind == "numbers":
        return given, {i: i for i in range(len(given))}
    values = _distinct(splits["train"], column)
    if kind == "text" and not given:
        _check_one_kind(values, column)
    if kind == "numbers":
        _check_minus_one(splits["train"], column)
    names = given or tuple(str(int(value) if isinstance(value, float) else value) for value in values)
    return names, {value: i for i, value in enumerate(given or values)}


def _class_names(splits: Mapping[str, Dataset], column: str, given: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(_item_feature(splits["train"], column).names)
    for role, dataset in splits.items():
        other = tuple(_item_feature(dataset, column).names)
        if other != names:
            raise ValueError(f"data: the {role} split has the classes {list(other)}, the train split {list(names)}")
    if given and len(given) != len(names):
        raise ValueError(f"data.label_names has {len(given)} names, the data have {len(names)} classes: {list(names)}")
    if given and given != names and set(given) == set(names):
        raise ValueError(
            f"data.label_names has the order {list(given)}, but the data's own classes are numbered {list(names)}: "
            "leave data.label_names out"
        )
    return given or names


def _kind(dataset: Dataset, column: str, has_lists: bool) -> str:
    is_list, feature = isinstance(dataset.features[column], List), _item_feature(dataset, column)
    dtype = str(getattr(feature, "dtype", feature))
    found = f"lists of {dtype}" if is_list else dtype
    if is_list == has_lists:
        if isinstance(feature, ClassLabel):
            return "classes"
        if is_text(feature):
            return "text"
        if dtype.startswith(("int", "uint", "bool")):
            return "numbers"
        # An empty cell makes pandas read a whole column of whole numbers as 1.0, 0.0 and so on.
        if dtype.startswith("float") and all(value.is_integer() for value in _distinct(dataset, column)):
            return "numbers"
        if dtype == "null":
            found = "no label at all"
        elif dtype.startswith("Json"):
            found = f"values of several types ({', '.join(map(repr, _one_of_each_type(dataset, column)))})"
    expected = "a list of labels, one for each word," if has_lists else "one label"
    raise ValueError(
        f"data.label_column {column!r} holds {found}: expected {expected} in each row, all of them text or all whole "
        "numbers. For several labels a row or for regression, use DistillationTrainer from Python."
    )


def _item_feature(dataset: Dataset, column: str) -> Any:
    feature = dataset.features[column]
    return feature.feature if isinstance(feature, List) else feature


def _distinct(dataset: Dataset, column: str) -> list[Any]:
    values = dataset.with_format("arrow")[:][column].combine_chunks()
    if isinstance(dataset.features[column], List):
        values = values.flatten()
    present = [value for value in values.unique().to_pylist() if not _is_missing(value)]
    # As text "10" would come before "2", and a model with unnamed classes would be taken to mean that order.
    return sorted(present, key=int if all(map(_is_whole_number, present)) else None)


def _one_of_each_type(dataset: Dataset, column: str) -> list[Any]:
    return list({type(value): value for value in _flat(dataset.with_format(None)[column])}.values())


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _is_whole_number(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return not isinstance(value, str) or value.strip().lstrip("-").isdecimal()


def _is_missing(value: Any) -> bool:
    if isinstance(value, int | float):
        return value in (MISSING_LABEL, -1) or value != value
    return value is None or value == ""


def _check_minus_one(dataset: Dataset, column: str) -> None:
    """Refuse a number that marks a missing label in some data sets, and is a class in others."""
    if any(value == -1 for value in _flat(dataset.with_format(None)[column])):
        raise ValueError(
            f"data.label_column {column!r} holds -1 beside other numbers in the train split, which may be a class or a "
            "missing label: write missing labels as -100 or leave them empty, or name the classes 0, 1, ... in "
            "data.label_names"
        )


def _check_one_kind(values: Sequence[str], column: str) -> None:
    numeric = [value for value in values if _is_whole_number(value)]
    if numeric and len(numeric) < len(values):
        text = [value for value in values if value not in numeric]
        raise ValueError(
            f"data.label_column {column!r} mixes numbers ({', '.join(numeric[:4])}) and text ({', '.join(text[:4])}): "
            "make them one, or list all of them in data.label_names if they are all names"
        )


def _indexed(dataset: Dataset, role: str, column: str, index: Mapping[Any, int], words: str | None) -> Dataset:
    remedy = "If the rows are ordered by class, divide them at random: data.eval_split: 0.1"
    hint = "" if role == "train" else f" that the train split has. {remedy}"

    def convert(value: Any) -> int:
        if _is_missing(value):
            return MISSING_LABEL
        if value not in index:
            raise ValueError(
                f"data: label {value!r} in column {column!r} of the {role} split is none of the {len(index)} classes "
                f"{list(index)[:20]}{hint}"
            )
        return index[value]

    values = dataset.with_format(None)[column][:]
    converted: list[Any]
    if words is None:
        feature, converted = Value("int64"), [convert(value) for value in values]
    else:  # a row without labels has as many missing ones as it has words
        feature = List(Value("int64"))
        converted = [
            [MISSING_LABEL] * len(texts) if value is None else [convert(item) for item in value]
            for value, texts in zip(values, dataset.with_format(None)[words][:], strict=True)
        ]
    dataset = dataset.remove_columns([name for name in {column, "labels"} if name in dataset.column_names])
    return dataset.add_column("labels", converted, feature=feature)
