import copy
import json
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig

from hf_distill import student_from_teacher
from hf_distill.teachers.labels import align_labels, names_in_order
from tests.training.test_trainer import trainer

few_examples = settings(max_examples=50, deadline=None)
some_labels = st.lists(st.text("abcXYZ _", min_size=1, max_size=6), min_size=1, max_size=6, unique_by=str.casefold)


# ---- By name ----


def test_each_label_of_the_student_finds_its_logit() -> None:
    """The inverse permutation, which is the same for a swap of two labels but not for three."""
    assert align_labels(["red", "green", "blue"], ["blue", "red", "green"]) == [2, 0, 1]


@given(student=some_labels, random=st.randoms(use_true_random=False))
@few_examples
def test_reordering_by_the_indices_gives_the_labels_of_the_student(student: list[str], random: Random) -> None:
    """A student that is taught "negative" where its teacher says "positive"."""
    teacher = [name.upper() for name in student]
    random.shuffle(teacher)
    indices = align_labels(teacher, student)
    reordered = teacher if indices is None else [teacher[index] for index in indices]
    assert [name.casefold() for name in reordered] == [name.casefold() for name in student]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (["red", "green"], ["red", "green"]),
        (["Red", "GREEN"], ["red", "green"]),
        (["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"]),
        (["LABEL_0", "LABEL_1"], ["label_0", "label_1"]),
    ],
)
def test_one_order_needs_no_indices(teacher: list[str], student: list[str]) -> None:
    """A gather in every step for nothing, or a warning about labels that were compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert align_labels(teacher, student) is None


def test_generic_names_on_both_sides_are_compared() -> None:
    """Names of the form LABEL_0 in another order, taken to say nothing."""
    assert align_labels(["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"]) == [1, 0]


@pytest.mark.parametrize(
    ("side", "teacher", "student"),
    [("teacher", ["LABEL_0", "LABEL_1"], ["no", "yes"]), ("student", ["no", "yes"], ["LABEL_0", "LABEL_1"])],
)
def test_generic_names_on_one_side_are_taken_to_be_in_order_with_a_warning(
    side: str, teacher: list[str], student: list[str]
) -> None:
    """An order that nobody has checked, trusted in silence."""
    with pytest.warns(UserWarning, match=f"the {side}'s labels have generic names.*'yes'.*Set id2label"):
        assert align_labels(teacher, student) is None


def test_names_are_compared_where_only_some_are_generic() -> None:
    """One label called LABEL_1 by chance, and all the others no longer compared."""
    assert align_labels(["LABEL_1", "other"], ["other", "LABEL_1"]) == [1, 0]


def test_another_number_of_labels_is_refused() -> None:
    """A softmax over classes that the student does not have."""
    with pytest.raises(ValueError, match=r"teacher has 3 labels, the student 2.*'c'.*teacher_label_map="):
        align_labels(["a", "b", "c"], ["a", "b"])


def test_a_name_that_the_teacher_lacks_is_refused_with_both_lists() -> None:
    """Order taken for meaning where one name is misspelt."""
    with pytest.raises(ValueError, match=r"no label named 'purple'.*'blue'.*'red'.*teacher_label_map="):
        align_labels(["red", "blue"], ["red", "purple"])


@pytest.mark.parametrize(
    ("teacher", "student"), [(["us", "US"], ["US", "us"]), (["it", "us"], ["it", "IT"]), (["x", "y"], ["x", "x"])]
)
def test_names_that_do_not_tell_labels_apart_are_refused(teacher: list[str], student: list[str]) -> None:
    """Two labels of the student taught by one logit."""
    with pytest.raises(ValueError, match=r"differ in nothing but case.*teacher_label_map="):
        align_labels(teacher, student)


def test_a_long_list_of_labels_is_shortened_in_an_error() -> None:
    """A thousand names of ImageNet in the way of the one that is wrong."""
    names = [f"class {index}" for index in range(1000)]
    with pytest.raises(ValueError, match="no label named 'dog'") as error:
        align_labels(names, [*names[:-1], "dog"])
    assert len(str(error.value)) < 2000


# ---- By map ----


def test_a_map_names_the_teachers_label_for_each_of_the_students() -> None:
    """The map read in the wrong direction."""
    label_map = {"bad": "neg", "good": "pos"}
    assert align_labels(["pos", "neg"], ["bad", "good"], label_map) == [1, 0]


def test_a_map_may_leave_labels_of_the_teacher_out() -> None:
    """Indices dropped because they start like the identity, so the student gets three logits for two."""
    label_map = {"bad": "neg", "good": "pos"}
    assert align_labels(["neg", "pos", "neutral"], ["bad", "good"], label_map) == [0, 1]
    assert align_labels(["neg", "neutral", "pos"], ["bad", "good"], label_map) == [0, 2]


def test_a_map_that_says_the_order_is_the_same_needs_no_indices() -> None:
    """A gather in every step for nothing."""
    assert align_labels(["neg", "pos"], ["bad", "good"], {"bad": "neg", "good": "pos"}) is None


def test_a_map_overrides_the_names() -> None:
    """A map that is ignored because the names agree."""
    assert align_labels(["a", "b"], ["a", "b"], {"a": "b", "b": "a"}) == [1, 0]


@pytest.mark.parametrize(
    ("label_map", "complaint"),
    [
        ({"bad": "neg"}, r"missing \['good'\], not a label of the student none"),
        ({"bad": "neg", "good": "pos", "fine": "pos"}, r"missing none, not a label of the student \['fine'\]"),
        ({"bad": "neg", "Good": "pos"}, r"missing \['good'\], not a label of the student \['Good'\]"),
        ({"bad": "neg", "good": "great"}, r"names \['great'\], which the teacher does not have"),
        ({"bad": "neg", "good": "neg"}, "two labels of the student the same label of the teacher"),
        ({}, r"missing \['bad', 'good'\]"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(label_map: dict[str, str], complaint: str) -> None:
    """A misspelt entry that is ignored."""
    with pytest.raises(ValueError, match=f"{complaint}.*Teacher: .*'neg'.*student: .*'bad'"):
        align_labels(["neg", "pos", "neutral"], ["bad", "good"], label_map)


# ---- The order of a config ----


def test_names_come_in_the_order_of_the_logits() -> None:
    """The order of insertion, or that of text, where 10 comes before 2."""
    assert names_in_order({1: "b", 0: "a"}) == ["a", "b"]
    config = BertConfig(id2label={str(index): f"n{index}" for index in reversed(range(12))})
    assert names_in_order(config.id2label) == [f"n{index}" for index in range(12)]


@pytest.mark.parametrize("key", [int, str, lambda index: f"{index:04d}"], ids=["number", "text", "padded"])
def test_keys_are_numbers_whatever_their_type(key: Any) -> None:
    """As text "10" comes before "2": from eleven classes on, a teacher is permuted in silence."""
    names = [f"class {place * 7 % 1000}" for place in range(1000)]
    assert names_in_order({key(place): name for place, name in enumerate(names)}) == names


def test_keys_that_are_no_numbers_are_refused() -> None:
    """label2id in the place of id2label."""
    with pytest.raises(ValueError, match=r"keys of id2label must be the numbers of the logits, got \['cat', 'dog'\]"):
        names_in_order({"cat": "0", "dog": "1"})


# ---- A thousand classes, named as the guides of image classification do it ----

THOUSAND = [f"class {place * 7 % 1000}" for place in range(1000)]
AS_TEXT = {
    "id2label": {str(place): name for place, name in enumerate(THOUSAND)},
    "label2id": {name: str(place) for place, name in enumerate(THOUSAND)},
}
AS_NUMBERS = {"id2label": dict(enumerate(THOUSAND)), "label2id": {name: i for i, name in enumerate(THOUSAND)}}


def fine_tuned(folder: str) -> Any:
    """Load a model as the guides do: with the names of its classes as keywords, whose keys stay text."""
    base = tiny.bert(1, num_labels=1000, id2label=None, label2id=None, initializer_range=0.5)
    base.save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **AS_TEXT)
    assert list(model.config.id2label)[:2] == ["0", "1"]
    return model


@pytest.mark.parametrize("as_what", ["model", "folder"])
@pytest.mark.parametrize("student_has", ["text", "numbers", "layers"])
def test_a_teacher_of_a_thousand_classes_with_text_keys_agrees_with_itself(as_what: str, student_has: str) -> None:
    """Zero soft loss against itself; the keys sorted as text, it was that of two unlike models."""
    teacher = fine_tuned("teacher")
    student = copy.deepcopy(teacher)
    if student_has == "numbers":
        student.config.id2label, student.config.label2id = AS_NUMBERS["id2label"], AS_NUMBERS["label2id"]
    elif student_has == "layers":
        student = student_from_teacher(teacher, layers=[0, 1])
        assert student.config.id2label == AS_NUMBERS["id2label"]
        assert student.config.label2id == AS_NUMBERS["label2id"]
    if as_what == "folder":
        teacher.save_pretrained("teacher")
        written = json.loads(Path("teacher/config.json").read_text())
        assert list(written["id2label"])[:3] == ["0", "1", "10"]
        assert set(written["label2id"].values()) == set(AS_TEXT["label2id"].values())
        teacher = "teacher"
    rows = Dataset.from_list(
        [{"input_ids": [5, 6 + place], "attention_mask": [1, 1], "labels": place * 99} for place in range(8)]
    )
    made = trainer(student, teacher, rows, eval_rows=rows, alpha=0.0)
    assert made.evaluate()["eval_soft_loss"] == pytest.approx(0, abs=1e-6)
    other = trainer(tiny.bert(2, initializer_range=0.5, **AS_NUMBERS), teacher, rows, eval_rows=rows, alpha=0.0)
    assert other.evaluate()["eval_soft_loss"] > 0.1
