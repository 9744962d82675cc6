"""Several teachers at work as one."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import TEACHER_INPUTS, TeacherOutput

CPU = torch.device("cpu")
STUDENT = tiny.bert(9)
ONE, OTHER = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]]), torch.tensor([[-1.0, 1.0, 0.0], [0.0, 4.0, 0.0]])


def frozen(seed: int = 1, model: nn.Module | None = None, **options) -> TeacherModel:
    return TeacherModel(model or tiny.bert(seed, initializer_range=0.3), STUDENT, device=CPU, **options)


def several(count: int = 2, **options) -> TeacherEnsemble:
    return TeacherEnsemble([frozen(seed) for seed in range(1, count + 1)], **options)


def text_batch() -> dict[str, Tensor]:
    rows = tiny.text_rows(4)
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def specialist(classes: list[int], oversampling: float = 1.0) -> tuple[TeacherModel, list[int], float]:
    return frozen(3), classes, oversampling


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("weights", "shares"), [(None, (0.5, 0.5)), ([3, 1], (0.75, 0.25)), ([0, 2], (0.0, 1.0))])
def test_soft_targets_are_the_weighted_mean_of_probabilities(temperature, weights, shares):
    """A mean of logits, weights in another order or not made to sum to 1, or a mean at another temperature."""
    found = several(weights=weights).combine(TeacherOutput([ONE, OTHER]), temperature, "single_label_classification")
    expected = sum(
        share * F.softmax(logits / temperature, -1) for share, logits in zip(shares, (ONE, OTHER), strict=True)
    )
    torch.testing.assert_close(F.softmax(found / temperature, -1), expected)


def test_the_geometric_mean_is_the_mean_of_logits():
    """The setting is not passed on."""
    found = several(kind="geometric", weights=[1, 3]).combine(
        TeacherOutput([ONE, OTHER]), 2.0, "single_label_classification"
    )
    torch.testing.assert_close(F.softmax(found, -1), F.softmax(ONE / 4 + 3 * OTHER / 4, -1))


def test_members_speak_in_their_order_and_specialists_last():
    """The weights of one teacher given to another, or a specialist's logits read as a generalist's."""
    made = several(specialists=[specialist([0, 2])])
    batch = text_batch()
    members = made(batch).logits
    assert len(members) == 3
    for logits, seed in zip(members, (1, 2, 3), strict=True):
        assert torch.equal(logits, frozen(seed)(batch).logits[0])


def test_a_specialist_has_its_say_where_the_generalists_first_choice_is_one_of_its_classes():
    """Equation 5 by hand: the specialist is of classes 0 and 1, and its dustbin is class 2 alone."""
    general = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0]])
    special = torch.tensor([[0.0, 3.0, 1.0], [4.0, 0.0, 0.0]])
    made = TeacherEnsemble([frozen(1)], [specialist([0, 1], oversampling=9.0)])
    found = F.softmax(made.combine(TeacherOutput([general, special]), 1.0, "single_label_classification"), -1)
    corrected = special + torch.tensor([0.0, 0.0, math.log(9.0)])
    helped = (F.softmax(general[0], -1) + F.softmax(corrected[0], -1)) / 2  # its three labels are the three classes
    torch.testing.assert_close(found[0], helped)
    torch.testing.assert_close(found[1], F.softmax(general[1], -1))


def test_specialists_of_other_problems_are_refused():
    """A dustbin among Bernoulli probabilities."""
    made = TeacherEnsemble([frozen(1)], [specialist([0, 1])])
    with pytest.raises(ValueError, match="exclude each other; multi_label_classification has none"):
        made.combine(TeacherOutput([ONE, OTHER]), 1.0, "multi_label_classification")


def test_each_generalist_is_judged_and_the_whole_last():
    """Results under another teacher's name, or one at the training's temperature."""
    found = several(3, weights=[1, 1, 2]).by_teacher(TeacherOutput([ONE, OTHER, ONE]), "single_label_classification")
    assert list(found) == ["teacher 1 of 3", "teacher 2 of 3", "teacher 3 of 3", "all teachers together"]
    assert found["teacher 2 of 3"] is OTHER
    expected = 0.75 * F.softmax(ONE, -1) + 0.25 * F.softmax(OTHER, -1)
    torch.testing.assert_close(F.softmax(found["all teachers together"], -1), expected)


def test_one_generalist_with_specialists_is_judged_together_with_them():
    """A specialist judged on classes that it has never seen."""
    found = TeacherEnsemble([frozen(1)], [specialist([0, 1])]).by_teacher(
        TeacherOutput([ONE, OTHER]), "single_label_classification"
    )
    assert list(found) == ["the teacher of all classes", "all teachers together"]


def test_a_token_has_a_soft_target_where_all_members_have_one():
    """A token that one teacher has lost to truncation learns from zeros in its place."""
    views = [{"token_positions": torch.tensor([[-1, 1, 2, -1]])}, {"token_positions": torch.tensor([[-1, -1, 3, 4]])}]
    made = TeacherEnsemble([frozen(1), frozen(2, view=0), frozen(3, view=1)])
    assert made.mask({TEACHER_INPUTS: views}).tolist() == [[False, False, True, False]]
    assert several().mask({}) is None


def test_entries_that_only_one_member_takes_are_known():
    """A student that is given a teacher's token types."""
    student = tiny.distilbert(0)
    made = TeacherEnsemble(
        [TeacherModel(tiny.distilbert(1), student, device=CPU), TeacherModel(tiny.bert(1), student, device=CPU)]
    )
    assert "token_type_ids" in made.batch_keys
    assert "input_ids" not in made.batch_keys


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "beside a teacher that knows all the labels, and there is none"),
        (2, {"weights": [1.0]}, "got 1 weights for 2 teachers"),
        (2, {"weights": [0.0, 0.0]}, "not all 0"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(count, options, message):
    """Found out in the first batch."""
    with pytest.raises(ValueError, match=message):
        several(count, **options)
