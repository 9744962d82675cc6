"""The labels of data in every form that a user brings, in front of a real trainer."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, IterableDataset, List, Value
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_distill import DistillationTrainer
from hf_distill.data.images import ImageRows
from hf_distill.data.label_columns import LabelCollator, LabelSpace
from tests.training.test_trainer import config, trainer

NAMES = ("red", "green", "blue")
MULTI = {"problem_type": "multi_label_classification"}
REGRESSION = {"problem_type": "regression"}


def rows_with(labels: Any, column: str = "labels", **others: Any) -> Dataset:
    """Rows of two tokens, with a column of labels."""
    inputs = {
        "input_ids": [[5, 6 + place % 9] for place in range(len(labels))],
        "attention_mask": [[1, 1]] * len(labels),
    }
    return Dataset.from_dict({**inputs, column: labels, **others})


def as_list(rows: Dataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


def as_tensors(rows: Dataset) -> list[dict[str, Any]]:
    return [{name: torch.tensor(value) for name, value in row.items()} for row in rows]


def made(rows: Any, *, models: dict[str, Any] | None = None, build: Any = tiny.bert, **settings: Any) -> Any:
    models = models or {}
    return trainer(build(0, **models), build(1, **models), rows, **{"max_steps": 1, "alpha": 0.5, **settings})


def label_losses(rows: Any, **settings: Any) -> list[float]:
    """Train on rows as they come, and return the label loss of each batch."""
    found = made(
        rows, max_steps=-1, num_train_epochs=1, train_sampling_strategy="sequential", logging_steps=1, **settings
    )
    found.train()
    return [entry["label_loss"] for entry in found.state.log_history if "label_loss" in entry]


# ---- Labels out of range ----


OUT_OF_RANGE = {
    **{
        kind: lambda kind=kind: rows_with([0, 1, 7, 2]).cast_column("labels", Value(kind))
        for kind in (*("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"),)
    },
    "text": lambda: rows_with(["0", "1", "7", "2"]),
    "with a null": lambda: rows_with([0, None, 7, 2]),
    "label": lambda: rows_with([0, 1, 7, 2], "label"),
    "label_ids": lambda: rows_with([0, 1, 7, 2], "label_ids"),
    "torch format": lambda: rows_with([0, 1, 7, 2]).with_format("torch"),
    "shuffled": lambda: rows_with([0, 1, 7, 2]).select([2, 0, 1]),
    "list": lambda: as_list(rows_with([0, 1, 7, 2])),
    "list of tensors": lambda: as_tensors(rows_with([0, 1, 7, 2])),
}


@pytest.mark.parametrize("form", OUT_OF_RANGE)
def test_labels_out_of_range_are_refused_in_every_form_before_the_training(form: str) -> None:
    """255 for "ignore" in a uint8 column: on a GPU an assertion that kills the process, in the middle of an epoch."""
    generic = {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": None}
    with pytest.raises(
        ValueError, match=r"the labels run from 0 to 7, the student has 3 classes: labels must be 0 to 2"
    ):
        made(OUT_OF_RANGE[form](), models=generic)


class Rows(torch.utils.data.Dataset):
    """A data set of the user's own, whose labels nobody sees before they are read."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


UNSEEN = {
    "map-style": lambda rows: Rows(as_list(rows)),
    "stream": lambda rows: IterableDataset.from_generator(lambda: iter(as_list(rows))),
    "transform": lambda rows: rows.with_transform(lambda batch: batch),
}


@pytest.mark.parametrize("form", UNSEEN)
def test_labels_that_show_only_in_a_batch_are_refused_there(form: str) -> None:
    """Target 7 is out of bounds, says torch, which does not say of what."""
    with pytest.raises(ValueError, match="the labels run from 0 to 7, the student has 3 classes"):
        made(UNSEEN[form](rows_with([0, 1, 7, 2])), per_device_train_batch_size=4).train()


def test_labels_that_a_collator_of_ones_own_makes_are_looked_at_as_they_come_out() -> None:
    """A column that the collator converts, refused for what it holds; and what comes out, taken as it is."""

    def numbered_from_one(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return default_data_collator([{**row, "labels": row["labels"] - 1} for row in rows])

    assert made(rows_with([1, 2, 3]), collator=numbered_from_one).train().global_step == 1
    with pytest.raises(ValueError, match="the labels run from -1 to 1"):
        made(rows_with([0, 1, 2]), collator=numbered_from_one).train()


def test_labels_of_tokens_are_looked_at() -> None:
    """Labels of another data set's tags, of which only those of rows were counted."""
    rows = rows_with([[0, -100], [1, 3]])
    with pytest.raises(ValueError, match="the labels run from 0 to 3, the student has 3 classes"):
        made(rows, build=tiny.bert_for_tokens)


def test_numbers_that_are_no_class_are_refused() -> None:
    """Scores of a regression, cut down to whole numbers."""
    with pytest.raises(ValueError, match=r"column 'labels' are numbers such as 0\.5.*problem_type='regression'"):
        made(rows_with([1.0, 0.5, 2.0]))
    stated = {"problem_type": "single_label_classification"}
    floats = Rows(as_list(rows_with([0.5, 1.5, 2.0])))
    with pytest.raises(ValueError, match=r"class labels must be whole numbers \(torch.long\), got torch.float32"):
        made(floats, models=stated).train()


# ---- Evaluation and prediction ----


@pytest.mark.parametrize("form", [lambda rows: rows, as_list], ids=["dataset", "list"])
def test_a_set_that_is_evaluated_later_is_looked_at_too(form: Any) -> None:
    """Only the sets of the constructor were."""
    found = made(rows_with([0, 1, 2]), per_device_eval_batch_size=1)
    found.model.register_forward_pre_hook(lambda *_: pytest.fail("a batch is computed"))
    with pytest.raises(ValueError, match=r"run from -1 to 1, .* 3 classes.*-1 is no label: remove the column"):
        found.evaluate(form(rows_with([1, 0, -1])))
    with pytest.raises(ValueError, match="run from 0 to 3"):
        found.predict(form(rows_with([0, 3])))


@pytest.mark.parametrize("form", [lambda rows: rows, as_list, as_tensors], ids=["dataset", "list", "tensors"])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_hidden_labels_of_a_test_split_are_none(form: Any, column: str) -> None:
    """GLUE's test splits have -1 in each row: IndexError, in the place of the logits."""
    found = made(rows_with([0, 1, 2]))
    predicted = found.predict(form(rows_with([-1] * 5, column)))
    assert predicted.predictions.shape == (5, 3)
    assert predicted.label_ids is None
    assert "test_soft_loss" in predicted.metrics
    assert "test_label_loss" not in predicted.metrics
    assert found.predict_with_teacher(form(rows_with([-1] * 5, column)))[1] is None
    with pytest.raises(ValueError, match="run from -1 to -1"):
        found.evaluate(form(rows_with([-1] * 5, column)))


# ---- Null and text ----


def cross_entropy(student: Any, rows: Dataset, labels: list[int]) -> float:
    with torch.no_grad():
        inputs = {name: torch.tensor(rows[:][name]) for name in ("input_ids", "attention_mask")}
        return float(torch.nn.functional.cross_entropy(student.eval()(**inputs).logits, torch.tensor(labels)))


READ_AS = {
    "null": ([0, None, 2, 1], [0, -100, 2, 1]),
    "null first": ([None, None, 2, 1], [-100, -100, 2, 1]),
    "whole numbers of pandas": ([0.0, None, 2.0, 1.0], [0, -100, 2, 1]),
    "names": (["red", "blue", "Green", "red"], [0, 2, 1, 0]),
    "names, and none": (["red", None, "", "blue"], [0, -100, -100, 2]),
    "truth": ([True, False, None, True], [1, 0, -100, 1]),
}


PADDING = DataCollatorWithPadding(tiny.tokenizer())
COLLATED = {
    "default, label": (None, "label"),
    "default, labels": (None, "labels"),
    "padding, label": (PADDING, "label"),
    "padding, label_ids": (PADDING, "label_ids"),
}


@pytest.mark.parametrize(("collator", "column"), COLLATED.values(), ids=COLLATED.keys())
@pytest.mark.parametrize("kind", READ_AS)
def test_null_and_text_are_read_as_in_recipes(kind: str, collator: Any, column: str) -> None:
    """A collator that speaks of padding and nesting, at the first batch that has a label which is null."""
    labels, expected = READ_AS[kind]
    rows = rows_with(labels, column)
    settings = {"collator": collator, "alpha": 1.0, "per_device_eval_batch_size": 2}
    for form in (rows, as_list(rows), Rows(as_list(rows)), rows.with_format("torch")):
        found = made(eval_rows=form, rows=None, models={"initializer_range": 0.5}, **settings)
        metrics = found.evaluate()
        assert metrics["eval_label_loss"] == pytest.approx(cross_entropy(found.model, rows, expected), rel=1e-5)
    assert found.predict(form).label_ids.tolist() == expected


def test_text_labels_of_a_stream_are_read() -> None:
    """A stream, whose first row is the first that anyone sees."""
    stream = IterableDataset.from_generator(lambda: iter(as_list(rows_with(["red", "blue", None, "green"]))))
    assert made(stream).train().global_step == 1


def test_numbers_in_text_are_the_classes_of_a_student_without_names() -> None:
    """Labels of a csv file, "0" and "1", for a student whose classes are LABEL_0 and LABEL_1."""
    generic = {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": None}
    found = made(rows_with(["0", "2", "1"]), models=generic)
    assert found.predict(rows_with(["0", "2", "1"])).label_ids.tolist() == [0, 2, 1]


@pytest.mark.parametrize("form", [lambda rows: rows, as_list], ids=["dataset", "list"])
def test_text_that_names_no_class_is_refused_with_the_classes(form: Any) -> None:
    """A misspelt class, which would become a missing label."""
    with pytest.raises(
        ValueError, match=r"'labels': the labels \['rot'\] are text.*\['red', 'green', 'blue'\].*id2label"
    ):
        made(form(rows_with(["red", "rot"])))
    generic = {"id2label": {i: f"LABEL_{i}" for i in range(3)}, "label2id": None}
    with pytest.raises(ValueError, match=r"\['red', 'rot'\] are text.*have no names.*class_encode_column"):
        made(form(rows_with(["red", "rot"])), models=generic)
    with pytest.raises(ValueError, match=r"text.*regression needs numbers"):
        made(form(rows_with(["red", "rot"])), models={**REGRESSION, "num_labels": 1, "id2label": None})


def test_text_and_null_of_tokens_are_read() -> None:
    """Tags as text, and a row that nobody has tagged."""
    rows = rows_with([["red", None], ["blue", "green"], None, ["red", "red"]])
    found = made(rows, build=tiny.bert_for_tokens, collator=DataCollatorForTokenClassification(tiny.tokenizer()))
    found.train()
    assert found.predict(rows).label_ids.tolist() == [[0, -100], [2, 1], [-100, -100], [0, 0]]


def test_tokens_labelled_in_a_column_label_are_trained_on() -> None:
    """`DataCollatorForTokenClassification` leaves its name to that column, and no label was found."""
    settings = {"build": tiny.bert_for_tokens, "collator": DataCollatorForTokenClassification(tiny.tokenizer())}
    tags = [[0, 1], [2, -100], [1, 1], [0, 0]]
    losses = [label_losses(rows_with(tags, column), **settings) for column in ("label", "labels")]
    assert losses[0] == losses[1]
    assert losses[0][0] > 0


@pytest.mark.parametrize(
    ("labels", "models", "expected"),
    [
        ([[1.0, 0.0, 1.0], None], {}, [[1.0, 0.0, 1.0], [-100.0] * 3]),
        ([None, [1.0, None, 0.0]], MULTI, [[-100.0] * 3, [1.0, -100.0, 0.0]]),
        ([1.5, None], {**REGRESSION, "num_labels": 1, "id2label": None, "label2id": None}, [1.5, -100.0]),
    ],
)
def test_null_is_missing_in_every_kind_of_problem(labels: Any, models: Any, expected: Any) -> None:
    """One kind of label that is read, and the next that fails."""
    rows = rows_with(labels)
    found = made(rows, models=models, per_device_train_batch_size=1, max_steps=2)
    found.train()
    assert found.predict(rows).label_ids.tolist() == expected


def test_batches_of_plain_labels_are_those_of_the_collator_alone() -> None:
    """A wrapper that changes the order of entries or the type of labels."""
    rows = as_list(rows_with([0, 1, 2]))
    wrapped = LabelCollator(default_data_collator, LabelSpace(3, NAMES))
    batch, expected = pickle.loads(pickle.dumps(wrapped))(rows), default_data_collator(rows)
    assert list(batch) == list(expected)
    assert all(torch.equal(batch[name], expected[name]) and batch[name].dtype == expected[name].dtype for name in batch)


def test_the_tokenizer_of_the_collator_is_saved_beside_the_student() -> None:
    """`Trainer` finds it at the collator, where no processing_class was given."""
    found = made(rows_with([0, 1, 2]), collator=DataCollatorWithPadding(tiny.tokenizer()))
    found.save_model("student")
    assert type(tiny.tokenizer()).from_pretrained("student").get_vocab() == tiny.tokenizer().get_vocab()


# ---- No labels, or two columns ----


@pytest.mark.parametrize("form", [lambda rows: rows, as_list, Rows], ids=["dataset", "list", "map-style"])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_training_data_without_labels_are_refused_unless_alpha_is_zero(form: Any, alpha: float) -> None:
    """Labels in a column of another name: a tenth of the loss is gone, and label_loss 0 looks like a triumph."""
    rows = rows_with([0, 1, 0, 1], "target")
    if form is Rows:
        rows = as_list(rows)
    with pytest.raises(ValueError, match=rf"alpha is {alpha:g}.*no labels.*input_ids.*rename_column.*set alpha to 0"):
        made(form(rows), alpha=alpha).train()
    made(form(rows), alpha=0.0).train()


def test_data_without_labels_are_refused_before_the_teacher_is_run() -> None:
    """The whole training set, read by the teacher for nothing; the message names the columns."""
    with pytest.raises(ValueError, match="among input_ids, attention_mask, target"):
        made(rows_with([0, 1], "target"), precompute_teacher_logits=True)
    with pytest.raises(ValueError, match=r"alpha is 0\.4"):
        made(rows_with([0, 1], "target"), alpha=0.0, alpha_end=0.4, schedule="linear")


def test_labels_that_a_collator_of_ones_own_finds_are_labels() -> None:
    """A false alarm: the collator knows the column of the labels."""

    def of_target(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return default_data_collator([{**row, "labels": row["target"]} for row in rows])

    rows = [{name: value for name, value in row.items()} for row in as_list(rows_with([0, 1, 0, 1], "target"))]
    assert made(rows, collator=of_target, remove_unused_columns=False).train().global_step == 1


def test_labels_that_are_all_missing_are_warned_of() -> None:
    """A mapping of labels that has gone wrong: -100 in every row."""
    with pytest.warns(UserWarning, match="alpha is 0.5, and all labels in the column 'labels'.*which alpha 0 says"):
        made(rows_with([-100, None, -100]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(rows_with([-100, None, -100]), alpha=0.0)
        made(rows_with([-100, None, 1]))


def test_data_that_are_only_evaluated_need_no_labels() -> None:
    """An evaluation by the soft loss alone."""
    rows = rows_with([0, 1], "target")
    assert made(None, eval_rows=rows).evaluate()["eval_soft_loss"] > 0


@pytest.mark.parametrize("form", [lambda rows: rows, as_list], ids=["dataset", "list"])
@pytest.mark.parametrize("pair", [("label", "labels"), ("label_ids", "labels"), ("label", "label_ids")])
def test_two_columns_that_may_be_the_labels_are_asked_about(form: Any, pair: tuple[str, str]) -> None:
    """`label` was trained on, and `labels` looked at."""
    rows = form(rows_with([0, 1], pair[0]).add_column(pair[1], [1, 0]))
    with pytest.raises(ValueError, match=rf"in '{pair[1]}' or in '{pair[0]}'|in '{pair[0]}' or in '{pair[1]}'"):
        made(rows)
    with pytest.raises(ValueError, match="remove the one that is not meant"):
        made(rows_with([0, 1])).evaluate(rows)


# ---- Multi-label targets ----


@pytest.mark.parametrize("wrong", [[0.0, 2.0, 0.0], [-0.5, 0.0, 0.0]])
@pytest.mark.parametrize("models", [{}, MULTI], ids=["problem type implied", "stated"])
def test_multi_label_targets_that_are_no_probabilities_are_refused(wrong: list[float], models: Any) -> None:
    """A binary cross entropy that falls for ever: the target 2 asks for ever larger logits."""
    targets = [[1.0, 0.0, -100.0], [0.3, float("nan"), 1.0], wrong]
    message = rf"from 0 to 1, or -100 .* got {wrong[0]:g}, {wrong[1]:g}, 0 in row 2"
    with pytest.raises(ValueError, match=message):
        made(rows_with(targets), models=models)
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        made(Rows(as_list(rows_with(targets))), models=models).train()
    assert made(rows_with(targets[:2]), models=models).train().global_step == 1


def test_multi_label_targets_may_be_whole_numbers_and_not_class_indices() -> None:
    """Indices of the classes that a row has, in the place of a 0 or 1 for each class."""
    assert made(rows_with([[1, 0, 1], [0, 0, 1]]), models=MULTI).train().global_step == 1
    with pytest.raises(ValueError, match=r"must be from 0 to 1.* got 0, 2, 1 in row 1"):
        made(rows_with([[1, 0, 1], [0, 2, 1]]), models=MULTI)


def test_multi_label_targets_of_fixed_length_are_looked_at() -> None:
    """Arrow has another type for them."""
    rows = rows_with([[1.0, 0.0, 1.0], [0.0, 3.0, 1.0]]).cast_column("labels", List(Value("float32"), length=3))
    with pytest.raises(ValueError, match="got 0, 3, 1 in row 1"):
        made(rows)


# ---- The order of the classes ----


def named(names: list[str], labels: Any = (0, 1, 2), column: str = "label") -> Dataset:
    rows = rows_with(list(labels), column)
    feature = ClassLabel(names=names)
    return rows.cast_column(column, List(feature) if isinstance(labels[0], list) else feature)


def test_data_that_number_the_classes_in_another_order_are_refused() -> None:
    """MNLI: label 2 of the data is not class 2 of the models, and the student learns both."""
    rows = named(["red", "blue", "Green"])
    with pytest.raises(
        ValueError, match=r"\['red', 'blue', 'Green'\], the models \['red', 'green', 'blue'\]: 'blue' is 1 "
    ):
        made(rows)
    with pytest.raises(ValueError, match="align_labels_with_mapping"):
        made(rows_with([0, 1])).evaluate(rows)


def test_the_remedies_for_another_order_work() -> None:
    """A message that leads nowhere."""
    rows = named(["red", "blue", "green"])
    aligned = rows.align_labels_with_mapping({"red": 0, "green": 1, "blue": 2}, "label")
    assert made(aligned).predict(aligned).label_ids.tolist() == [0, 2, 1]
    assert made(rows.cast_column("label", Value("int64"))).predict(rows_with([0, 1, 2])).label_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [
        (["red", "green", "blue"], False),
        (["RED", "Green", "blue"], False),
        (["red", "green", "navy"], False),  # a name that is spelt in another way, at its place
        (["a", "b", "c"], False),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
        (["red", "blue"], True),  # a class fewer
        (["navy", "red", "blue"], True),
    ],
)
def test_names_that_both_have_must_be_at_one_place(names: list[str], is_refused: bool) -> None:
    """Data that know fewer classes, or others besides; and an alarm where nothing can be compared."""
    rows = named(names, labels=[0, 1, 0])
    if is_refused:
        with pytest.raises(ValueError, match="the data number the classes"):
            made(rows)
    else:
        assert made(rows).train().global_step == 1


def test_tags_of_tokens_are_compared() -> None:
    """The names are inside a list there."""
    settings = {"build": tiny.bert_for_tokens, "collator": DataCollatorForTokenClassification(tiny.tokenizer())}
    labels = [[0, 1], [2, 2], [1, 0]]
    with pytest.raises(ValueError, match="the data number the classes"):
        made(named(["blue", "green", "red"], labels, "labels"), **settings)
    assert made(named(list(NAMES), labels, "labels"), **settings).train().global_step == 1


def test_a_student_without_names_is_compared_by_those_of_its_teacher() -> None:
    """The teacher is taken to be in the student's order, which is that of the data."""
    student = tiny.bert(0, id2label={i: f"LABEL_{i}" for i in range(3)}, label2id=None)
    with pytest.warns(UserWarning, match="generic names"), pytest.raises(ValueError, match="data number the classes"):
        trainer(student, tiny.bert(1), named(["blue", "green", "red"]))
    with pytest.warns(UserWarning, match="generic names"):
        trainer(student, tiny.bert(1), named(list(NAMES)))
    in_order = {"LABEL_0": "blue", "LABEL_1": "green", "LABEL_2": "red"}
    trainer(student, tiny.bert(1), named(["blue", "green", "red"]), teacher_label_map=in_order)


# ---- What must not change ----


def test_a_training_on_plain_labels_is_that_of_trainer() -> None:
    """A look at the labels that draws a random number, or reorders the rows."""
    rows = rows_with([0, 1, 2] * 4)
    ours, plain = tiny.bert(0, dropout=0.1), tiny.bert(0, dropout=0.1)
    settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 2, "report_to": []}
    args = config(alpha=1.0, per_device_train_batch_size=8, **settings)
    found = DistillationTrainer(ours, None, args, train_dataset=rows).train().training_loss
    expected = Trainer(plain, TrainingArguments("plain", **settings), train_dataset=rows).train().training_loss
    assert found == pytest.approx(expected, rel=1e-6)


def test_rows_that_are_costly_to_read_are_not_read_for_their_labels() -> None:
    """A whole set of images, decoded to look at its labels."""
    rows = tiny.image_rows(4)
    reads = []

    class Counted(Rows):
        def __getitem__(self, place: int) -> dict[str, Any]:
            reads.append(place)
            return super().__getitem__(place)

    made(Counted(rows), build=tiny.vit)
    assert len(reads) <= 1
    assert not hasattr(ImageRows, "column_names")


def test_a_large_column_is_looked_at_without_a_python_object_for_each_label() -> None:
    """Half a minute of silence before ImageNet's first step."""
    labels = np.random.default_rng(0).integers(0, 3, 300_000)
    rows = Dataset.from_dict({"label": labels})
    assert LabelSpace(3, NAMES).check_column(rows, "label") == 300_000
