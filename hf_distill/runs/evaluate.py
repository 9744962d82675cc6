"""Evaluate a finished run's models, or any saved classifier, on new data."""

import contextlib
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    default_data_collator,
)

import hf_distill.models  # noqa: F401  (registers the architectures that Transformers lacks)
from hf_distill.data.images import ImageRows, check_images
from hf_distill.data.labels import MISSING_LABEL, index_labels
from hf_distill.data.loading import find_columns, load_rows
from hf_distill.data.processors import max_tokens
from hf_distill.data.text import tokenize_text, tokenize_words
from hf_distill.evaluation.latency import Timed, measure_speed, num_flops
from hf_distill.evaluation.metrics import Metrics
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.predictor import Collate, predict
from hf_distill.models.sources import first_line
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.settings import training_arguments
from hf_distill.runs.workspace import finished_stages
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.loading import forward_parameters

ROLES = ("student", "teacher", "baseline")


class Evaluation(NamedTuple):
    """What a model says of new data.

    Attributes:
        rows: the data.
        inputs: the columns that the model reads.
        label_names: of the classes, in the order of the probabilities.
        probabilities: `(rows, num_labels)`, or for each row `(words, num_labels)`.
        labels: of each row, or of its words; -100 where there is none.
        metrics: on what has a label; empty if nothing has.
        logits: `(rows, num_labels)`, or of all tokens of the rows.
        timed: the model, and how its batches are made.
    """

    rows: Dataset
    inputs: tuple[str, ...]
    label_names: list[str]
    probabilities: list[np.ndarray]
    labels: list[np.ndarray]
    metrics: dict[str, float]
    logits: np.ndarray
    timed: Timed

    @property
    def num_labels(self) -> int:
        """Return how many rows, or words, have a label."""
        return sum(int(np.sum(each != MISSING_LABEL)) for each in self.labels)


def evaluate(source: str | Path, data: str, *, model: str = "student", split: str | None = None) -> Evaluation:
    """Predict the rows of a file or folder with a classifier, and measure it where there are labels.

    Args:
        source: the output folder of a run, or the folder or Hub id of a model.
        data: a file or folder.
        model: which model of a run.
        split: of the data, if they have several.

    Raises:
        ValueError: there is no such model, or the data are not such as it reads.
    """
    recipe, folder = source_of(str(source), model)
    wanted = recipe.data
    found = load_rows(path=data, separator=wanted.separator, encoding=wanted.encoding)
    rows = _split(found, split)
    section = recipe.teachers[0] if model == "teacher" else recipe.student
    network = AUTO_CLASSES[recipe.task].from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=recipe.trusts_code_of(section)
    )
    names = names_in_order(network.config.id2label)
    columns, rows = _labelled(recipe, rows, names)
    reader, collator = as_read(recipe, folder, network, rows, columns)
    taken = forward_parameters(network)
    logits, labels = logits_of(recipe, network, reader, collator)
    if recipe.task == "token-classification":  # each word's first token has had its number for a label
        labels = _tags_at(labels, rows.with_format(None)["labels"])
    metrics = Metrics(recipe.model_dump()["metrics"], names)
    shares = torch.softmax(torch.from_numpy(logits), dim=-1).numpy()
    by_row = list(shares)
    if recipe.task == "token-classification":
        by_row = [each[places] for each, places in zip(shares, _firsts(reader), strict=True)]
    collate = Collate(collator, {*taken, "labels"})

    def batch_of(numbers: Sequence[int]) -> dict[str, Any]:
        batch = collate([reader[number] for number in numbers])
        return {name: value for name, value in batch.items() if name in taken}

    return Evaluation(
        rows=rows,
        inputs=columns,
        label_names=names,
        probabilities=by_row,
        labels=list(labels),
        metrics=dict(metrics(logits, labels)) if bool(np.any(labels != MISSING_LABEL)) else {},
        logits=logits,
        timed=Timed(network, batch_of),
    )


def logits_of(recipe: Recipe, network: PreTrainedModel, reader: Any, collator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a model's logits of rows, and their labels, by the settings of a recipe's student."""
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(recipe, "student", Path(scratch))
    return predict(network, reader, collator, args, input_names=forward_parameters(network))


def together(found: dict[str, Evaluation]) -> Predictions:
    """Join what several models say of the same data, with the classes in the order of the first.

    Raises:
        ValueError: they have other classes.
    """
    first = next(iter(found.values()))
    joined = {}
    for name, each in found.items():
        if sorted(each.label_names) != sorted(first.label_names):
            differing = sorted({*each.label_names} ^ {*first.label_names})
            raise ValueError(f"--against: {name} has other labels: {', '.join(differing[:6])}")
        order = [each.label_names.index(label) for label in first.label_names]
        joined[name] = each.logits[..., order], np.asarray(first.labels if each.logits.ndim == 2 else each.labels)
    return Predictions.of(joined, first.label_names)


def costs(found: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Measure in turns how large and how fast models are, on this machine's device.

    Returns:
        by model: `num_parameters`, `size_mib` of its weights, `flops` of the first row, and the fields of
        `evaluation.latency.Speed`.
    """
    device = PartialState().device
    with torch.no_grad():
        num_rows = len(next(iter(found.values())).rows)
        speeds = measure_speed(
            {name: [each.timed] for name, each in found.items()}, num_rows, device, contextlib.nullcontext
        )
    told = {}
    for name, each in found.items():
        parameters = list(each.timed.model.parameters())
        told[name] = {
            "num_parameters": sum(p.numel() for p in parameters),
            "size_mib": round(sum(p.numel() * p.element_size() for p in parameters) / 2**20, 3),
            "flops": num_flops(each.timed),
            **speeds[name]._asdict(),
        }
    return told


def write_predictions(found: Evaluation, file: Path, *, overwrite: bool = False) -> None:
    """Write a CSV or parquet file: inputs, label if there is one, predicted class, probability of each class.

    Raises:
        ValueError: the file is there.
    """
    if file.exists() and not overwrite:
        raise ValueError(f"--output: {file} is there: choose another name, or pass --overwrite")
    plain = found.rows.with_format(None)
    texts = {name: plain[name] for name in found.inputs}
    header = ["row", *found.inputs, "label", "prediction", *(f"probability_{name}" for name in found.label_names)]
    lines: list[list[Any]] = []
    for row, (shares, label) in enumerate(zip(found.probabilities, found.labels, strict=True)):
        inputs = [[_shown(values[row]) for values in texts.values()]]
        known, of_each = [label], [shares]
        if shares.ndim == 2:  # of each word
            inputs = [[word] for word in texts[found.inputs[0]][row]]
            known, of_each = plain["labels"][row], list(shares)
        for shown, index, each in zip(inputs, known, of_each, strict=False):
            truth = "" if index == MISSING_LABEL else found.label_names[int(index)]
            lines.append([row, *shown, truth, found.label_names[int(each.argmax())], *each.tolist()])
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        Dataset.from_dict({name: [line[place] for line in lines] for place, name in enumerate(header)}).to_parquet(file)
        return
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([f"{value:.6f}" if isinstance(value, float) else value for value in line] for line in lines)


def source_of(source: str, model: str) -> tuple[Recipe, str]:
    """Return the recipe of a run, or one that says no more than what a model is, and where the model is."""
    run = Path(source).expanduser()
    if (run / "recipe.yaml").is_file() and (run / "stages").is_dir():
        recipe, there = read_resolved(run / "recipe.yaml"), finished_stages(run)
        if model in there:
            return recipe, str(run / model)
        first = recipe.teachers[0]
        if model == "teacher" and len(recipe.teachers) == 1 and first.model is not None and first.revision is None:
            return recipe, first.model  # it came ready
        raise ValueError(f"{run} has no finished {model}, only {', '.join(there) or 'nothing'}")
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or run.exists()
    if is_path and not (run / "config.json").is_file():
        raise ValueError(f"{run} holds neither a run (the output_dir of `hf-distill train`) nor a model (config.json)")
    if model != "student":
        raise ValueError(f"--model: {source} is a model, and only a run has several")
    try:
        architectures = AutoConfig.from_pretrained(source).architectures or ["none"]
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} is neither a run nor a model: {first_line(error)}") from error
    ends = {"Sequence": "text-classification", "Image": "image-classification", "Token": "token-classification"}
    tasks = [task for end, task in ends.items() if f"For{end}Classification" in architectures[0]]
    if not tasks:
        raise ValueError(f"{source} is no classifier that is known here: its architecture is {architectures[0]}")
    known = {"task": tasks[0], "data": {"path": "."}, "teacher": {"model": source}, "student": {"model": source}}
    return Recipe.model_validate({**known, "training": {}, "output_dir": "unused"}), source


def _split(found: Any, split: str | None) -> Dataset:
    if split is None and len(found) > 1:
        raise ValueError(f"--split: the data have {', '.join(found)}: name one")
    if split is not None and split not in found:
        raise ValueError(f"--split: the data have no split {split}, only {', '.join(found)}")
    return found[split or next(iter(found))]


def _labelled(recipe: Recipe, rows: Dataset, names: list[str]) -> tuple[tuple[str, ...], Dataset]:
    """Return the columns of the inputs, and the rows with class indices in `labels`, -100 where there is no label."""
    data = recipe.data
    named = {name: getattr(data, name) for name in ("text_column", "text_pair_column", "image_column")}
    label = data.label_column
    usual = ("tags", "labels") if recipe.task == "token-classification" else ("label", "labels")
    is_there = any(name == label if label is not None else name.endswith(usual) for name in rows.column_names)
    if is_there:
        columns = find_columns(rows, recipe.task, **named, label_column=label)
        assert columns.label is not None
        words = columns.inputs[0] if recipe.task == "token-classification" else None
        indexed, _ = index_labels({"train": rows}, columns.label, words=words, label_names=names)
        return columns.inputs, indexed["train"]
    empty: list[Any] = [MISSING_LABEL] * len(rows)
    filled = rows.add_column("labels", empty)  # so that the other columns are found as in training
    columns = find_columns(filled, recipe.task, **named, label_column="labels")
    if recipe.task == "token-classification":
        empty = [[MISSING_LABEL] * len(words) for words in rows.with_format(None)[columns.inputs[0]]]
        filled = rows.add_column("labels", empty)
    return columns.inputs, filled


def as_read(recipe: Recipe, folder: str, network: PreTrainedModel, rows: Dataset, columns: tuple[str, ...]) -> Any:
    """Return the rows as the model reads them, and the collator of its batches."""
    trusts = recipe.trusts_code_of(recipe.student)
    if not recipe.is_text:
        check_images(rows, columns[0], "new", recipe.data.background)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trusts)
        channels = getattr(network.config, "num_channels", 3)
        images = ImageRows(rows, columns[0], processor, num_channels=channels, background=recipe.data.background)
        return images, default_data_collator
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts)
    most = max_tokens(network.config, tokenizer)
    length = most if recipe.data.max_length is None else recipe.data.max_length
    if recipe.task == "token-classification":
        numbered = rows.remove_columns("labels").add_column(
            "labels", [list(range(len(words))) for words in rows.with_format(None)[columns[0]]]
        )
        return tokenize_words(numbered, tokenizer, columns[0], length), DataCollatorForTokenClassification(tokenizer)
    return tokenize_text(rows, tokenizer, columns, length), DataCollatorWithPadding(tokenizer)


def _firsts(reader: Any) -> list[np.ndarray]:
    """Return the places of the tokens that begin a word, for each row."""
    return [np.flatnonzero(np.asarray(numbers) != MISSING_LABEL) for numbers in reader.with_format(None)["labels"]]


def _tags_at(numbers: np.ndarray, tags: Any) -> np.ndarray:
    """Return the tag of each token that begins a word, -100 elsewhere, from the words' numbers."""
    found = np.full_like(numbers, MISSING_LABEL)
    for row, of_row in enumerate(tags):
        places = np.flatnonzero(numbers[row] != MISSING_LABEL)
        found[row, places] = np.asarray(of_row)[numbers[row, places]]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(getattr(value, "filename", "")) if value is not None else ""
