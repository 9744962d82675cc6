import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.objective.losses import PROBLEM_TYPES
from hf_distill.teachers.quality import TeacherQuality, measure_quality

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
few_examples = settings(max_examples=25, deadline=None)


def logits_for(classes: list[int], num_labels: int = 3) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), num_labels).float()


def measured(logits: Tensor, labels: Tensor, problem_type: str) -> TeacherQuality:
    quality = measure_quality(logits, labels, problem_type)
    assert quality is not None
    return quality


# ---- Values ----


def test_accuracy_and_chance_of_single_labels_are_those_found_by_hand() -> None:
    """Chance taken as 1 / num_labels, which a teacher of unequal classes always beats."""
    quality = measured(logits_for([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), SINGLE)
    assert (quality.measure, quality.value, quality.num_labels) == ("accuracy", 0.75, 4)
    assert quality.chance == pytest.approx(3 / 4 * 1 / 2 + 1 / 4 * 1 / 2)
    assert quality.margin == pytest.approx(2 * math.sqrt(0.5 * 0.5 / 4))


def test_accuracy_and_chance_of_multi_label_entries_are_those_found_by_hand() -> None:
    """Chance over all classes at once, which a teacher that knows only their frequencies beats."""
    logits = torch.tensor([[3.0, -1.0], [2.0, -2.0], [-1.0, -3.0], [1.0, -1.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    quality = measured(logits, labels, MULTI)
    assert (quality.measure, quality.value, quality.num_labels) == ("accuracy", 5 / 8, 8)
    first = 3 / 4 * 3 / 4 + 1 / 4 * 1 / 4
    second = 1 * 3 / 4
    assert quality.chance == pytest.approx((first + second) / 2)


def test_chance_of_multi_label_entries_weighs_a_class_by_its_labels() -> None:
    """A class with one label counted like one with a hundred, as accuracy does not."""
    logits = torch.ones(5, 2)
    labels = torch.tensor([[1.0, math.nan], [0.0, -100.0], [1.0, math.nan], [0.0, math.nan], [math.nan, 1.0]])
    quality = measured(logits, labels, MULTI)
    assert quality.num_labels == 5
    assert quality.value == pytest.approx(3 / 5)
    assert quality.chance == pytest.approx((4 * 0.5 + 1 * 1.0) / 5)


def test_correlation_of_numbers_is_the_one_found_by_hand() -> None:
    """An error in the units of the labels, which has no level of chance."""
    quality = measured(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0]), REGRESSION)
    assert (quality.measure, quality.chance, quality.num_labels) == ("correlation", 0.0, 3)
    assert quality.value == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert quality.margin == pytest.approx(2 / math.sqrt(3))


def test_tokens_count_one_by_one() -> None:
    """Rows taken for labels, and `argmax` over the tokens."""
    quality = measured(logits_for([0, 1, 2, 0]).view(2, 2, 3), torch.tensor([[0, 1], [-100, 1]]), SINGLE)
    assert (quality.value, quality.num_labels) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize(
    ("problem_type", "logits", "with_missing", "without"),
    [
        (SINGLE, logits_for([0, 1, 2, 2]), torch.tensor([0, 2, -100, 2]), [0, 1, 3]),
        (MULTI, torch.eye(4) - 0.5, torch.tensor([[1.0] * 4, [0.0] * 4, [-100.0] * 4, [1.0] * 4]), [0, 1, 3]),
        (REGRESSION, torch.tensor([[3.0], [1.0], [9.0], [2.0]]), torch.tensor([1.0, 2.0, math.nan, 3.0]), [0, 1, 3]),
    ],
)
def test_missing_labels_do_not_count(
    problem_type: str, logits: Tensor, with_missing: Tensor, without: list[int]
) -> None:
    """-100 counted as an error of the teacher."""
    present = measured(logits[without], with_missing[without], problem_type)
    assert measured(logits, with_missing, problem_type) == present


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE, torch.full((2,), -100)),
        (MULTI, torch.full((2, 3), math.nan)),
        (REGRESSION, torch.full((2, 3), -100.0)),
    ],
)
def test_nothing_is_said_of_a_teacher_without_labels(problem_type: str, labels: Tensor) -> None:
    """A division by 0 that turns into NaN, which compares as better than chance."""
    assert measure_quality(torch.zeros(2, 3), labels, problem_type) is None


# ---- Chance ----


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_a_teacher_that_knows_nothing_is_chance(problem_type: str) -> None:
    """An untrained head that passes: a margin too narrow for the number of labels.

    Two standard errors let one in twenty pass, so it is the share that is held here.
    """
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        logits = torch.randn(50, 4, generator=random)
        labels = {
            SINGLE: lambda: torch.randint(0, 4, (50,), generator=random),
            MULTI: lambda: torch.randint(0, 2, (50, 4), generator=random).float(),
            REGRESSION: lambda: torch.randn(50, 4, generator=random),
        }[problem_type]()
        found.append(measured(logits, labels, problem_type).is_chance)
    assert sum(found) / len(found) >= 0.9


def test_a_teacher_that_always_says_the_commonest_class_is_chance() -> None:
    """An accuracy of 90 % that says nothing about the rows."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    quality = measured(logits_for([0] * 100), labels, SINGLE)
    assert quality.value == 0.9
    assert quality.is_chance


def test_a_teacher_that_says_one_number_is_chance() -> None:
    """A correlation of NaN, which is not below any margin."""
    quality = measured(torch.full((50, 1), 0.7), torch.randn(50), REGRESSION)
    assert quality.value == 0.0
    assert quality.is_chance


def test_a_teacher_whose_labels_are_in_another_order_is_chance() -> None:
    """A permuted label space that teaches every class wrongly."""
    labels = torch.arange(60) % 3
    assert measured(logits_for(((labels + 1) % 3).tolist()), labels, SINGLE).is_chance
    assert measured(-labels[:, None].float(), labels.float(), REGRESSION).is_chance


def test_a_teacher_that_is_often_right_is_not_chance() -> None:
    """A margin so wide that no teacher passes."""
    labels = torch.arange(100) % 3
    predicted = torch.where(torch.arange(100) % 10 == 0, (labels + 1) % 3, labels)
    assert not measured(logits_for(predicted.tolist()), labels, SINGLE).is_chance


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=6, unique=True))
@few_examples
def test_a_teacher_without_an_error_is_never_chance(values: list[float]) -> None:
    """A perfect teacher refused because few rows or one class leave nothing to compare with."""
    numbers = torch.tensor(values)
    if float(numbers.double().std()) > 1e-3 * float(numbers.abs().max()):  # else rounding is all there is
        assert not measured(numbers[:, None], numbers, REGRESSION).is_chance
    classes = numbers.gt(0).long()
    assert not measured(logits_for(classes.tolist()), classes, SINGLE).is_chance
    assert not measured(numbers[:, None], classes[:, None].float(), MULTI).is_chance


def test_a_quality_reads_as_a_sentence() -> None:
    """An error about a teacher that hides the numbers it rests on."""
    quality = TeacherQuality("accuracy", 0.5, 0.375, 0.25, 16)
    assert str(quality) == "accuracy 0.500 on 16 labels, chance 0.375 +- 0.250"


def test_a_fair_teacher_on_few_labels_is_not_chance() -> None:
    """Three of four right is within two standard errors of chance, and refused although nothing is known."""
    quality = measured(logits_for([0, 1, 0, 0]), torch.tensor([0, 1, 0, 1]), SINGLE)
    assert quality.value == 0.75 < quality.chance + quality.margin
    assert not quality.is_chance
