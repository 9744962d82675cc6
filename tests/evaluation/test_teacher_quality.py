import dataclasses
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor

from hf_distill.data.targets import PROBLEM_TYPES
from hf_distill.evaluation import teacher_quality
from hf_distill.evaluation.teacher_quality import ChanceTeacherError, TeacherQuality, check_quality, measure_quality

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
few_examples = settings(max_examples=25, deadline=None)


def logits_for(classes: list[int], num_labels: int = 3) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), num_labels).float()


def measured(logits: Tensor, labels: Tensor, problem_type: str) -> TeacherQuality:
    quality = measure_quality(logits, labels, problem_type)
    assert quality is not None
    return quality


# ---- Values ----


def test_the_auc_of_two_classes_is_scikit_learns() -> None:
    """Ties counted as wins, or ranks of logits whose offset differs from row to row."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (50,), generator=random)
    logits = torch.randint(-2, 3, (50, 2), generator=random).float() + 100 * torch.randn(50, 1, generator=random)
    expected = roc_auc_score(labels, (logits[:, 1] - logits[:, 0]).round())
    quality = measured(logits.double(), labels, SINGLE)
    assert quality.ranking == pytest.approx(expected, abs=1e-2)
    assert (quality.measure, quality.chance, quality.num_labels) == ("accuracy", 0.5, 50)
    assert quality.value == pytest.approx(float((logits.argmax(-1) == labels).double().mean()))


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_the_auc_of_several_classes_is_the_share_of_all_pairs(problem_type: str) -> None:
    """A class with one row that counts like one with a hundred; a class without rows that counts at all."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, generator=random)
    labels = torch.randint(0, 3, (40,), generator=random)
    logits[torch.arange(40), labels] += 1
    entries = torch.nn.functional.one_hot(labels, 4)
    scores = logits.double().log_softmax(-1) if problem_type == SINGLE else logits
    won = []
    for scores_of_class, is_class in zip(scores.T, entries.T.bool(), strict=True):
        won += [float(yes > no) for yes in scores_of_class[is_class] for no in scores_of_class[~is_class]]
    quality = measured(logits, labels if problem_type == SINGLE else entries.float(), problem_type)
    assert quality.ranking == pytest.approx(sum(won) / len(won))


def test_correlations_of_numbers_are_the_ones_found_by_hand() -> None:
    """An error in the units of the labels, which has no level of chance."""
    quality = measured(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0]), REGRESSION)
    assert (quality.measure, quality.chance, quality.num_labels) == ("correlation", 0.0, 3)
    assert quality.value == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    assert quality.ranking == 1.0
    assert quality.margin == pytest.approx(2 / math.sqrt(3 - 1))
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, 30, generator=random)
    found = measured(numbers[0][:, None], numbers[1], REGRESSION)
    assert found.ranking == pytest.approx(spearmanr(numbers[0], numbers[1]).statistic)


def test_a_correlation_of_several_outputs_is_their_mean() -> None:
    """Outputs of different sizes, whose sizes alone correlate."""
    labels = torch.stack([torch.randn(100), 1000 + torch.randn(100)], dim=1)
    shuffled = torch.stack([labels[torch.randperm(100), 0], labels[torch.randperm(100), 1]], dim=1)
    quality = measured(shuffled, labels, REGRESSION)
    assert abs(quality.value) < 0.5
    each = [measured(shuffled[:, [place]], labels[:, place], REGRESSION).value for place in (0, 1)]
    assert quality.value == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_the_margin_is_that_of_shuffled_labels(problem_type: str) -> None:
    """Classes counted as independent, which they are neither in a softmax nor in the labels."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 3, generator=random) + torch.randn(60, 1, generator=random)
    classes = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 60, replacement=True, generator=random)
    labels = {
        SINGLE: classes,
        MULTI: torch.stack([classes > 0, classes > 1, classes == 1], dim=1).float(),
        REGRESSION: torch.randn(60, 3, generator=random) + torch.randn(60, 1, generator=random),
    }[problem_type]
    shuffled = [measured(logits, labels[torch.randperm(60, generator=random)], problem_type) for _ in range(500)]
    rankings = torch.tensor([quality.ranking for quality in shuffled])
    assert float(rankings.mean()) == pytest.approx(shuffled[0].chance, abs=0.01)
    assert shuffled[0].margin == pytest.approx(2 * float(rankings.std()), rel=0.1)


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
    found = measured(logits, with_missing, problem_type)
    assert dataclasses.replace(found, margin=0.0) == dataclasses.replace(present, margin=0.0)
    assert found.margin == pytest.approx(present.margin)


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


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_rows_of_which_the_teacher_says_nothing_do_not_count(problem_type: str) -> None:
    """NaN ranked above all numbers."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=random)
    labels = {
        SINGLE: torch.randint(0, 3, (40,), generator=random),
        MULTI: torch.randint(0, 2, (40, 3), generator=random).float(),
        REGRESSION: torch.randn(40, 3, generator=random),
    }[problem_type]
    with_nan = logits.clone()
    with_nan[30:] = math.nan
    assert measured(with_nan, labels, problem_type) == measured(logits[:30], labels[:30], problem_type)


# ---- Who is refused, who is doubted ----


def verdict(quality: TeacherQuality) -> str:
    if quality.is_chance:
        return "refused"
    return "accepted" if quality.doubt("the teacher") is None else "doubted"


def classes_of(random: Generator, shares: list[float], num_rows: int) -> Tensor:
    return torch.multinomial(torch.tensor(shares), num_rows, replacement=True, generator=random)


def answers(random: Generator, labels: Tensor, num_classes: int, strength: float) -> Tensor:
    """Logits of a teacher that says more of the right class: AUC 0.67 to 0.72 at 0.6, 0.98 at 3."""
    logits = torch.randn(*labels.shape, num_classes, generator=random)
    return logits + strength * torch.nn.functional.one_hot(labels, num_classes)


def single(strength: float, shares: list[float], num_rows: int) -> Callable[[Generator], tuple[Tensor, Tensor, str]]:
    def make(random: Generator) -> tuple[Tensor, Tensor, str]:
        labels = classes_of(random, shares, num_rows)
        return answers(random, labels, len(shares), strength), labels, SINGLE

    return make


def never_says_the_rare_class(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = single(2.0, [0.97, 0.03], 1000)(random)
    return logits + torch.tensor([20.0, 0.0]), labels, problem_type


def always_says_the_rare_class(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = single(2.0, [0.97, 0.03], 1000)(random)
    return logits - torch.tensor([20.0, 0.0]), labels, problem_type


def tokens(random: Generator, strength: float = 3.0) -> tuple[Tensor, Tensor, str]:
    labels = classes_of(random, [0.95, 0.02, 0.02, 0.01], 1000).view(50, 20)
    logits = answers(random, labels, 4, strength) + torch.tensor([4.0, 0.0, 0.0, 0.0])
    return logits, labels.masked_fill(torch.rand(50, 20, generator=random) < 0.3, -100), SINGLE


def hard_labels(random: Generator) -> tuple[Tensor, Tensor, str]:
    labels = torch.randint(0, 3, (100,), generator=random)
    said = torch.where(torch.rand(100, generator=random) < 0.3, (labels + 1) % 3, labels)
    return torch.nn.functional.one_hot(said, 3).float().log(), labels, SINGLE


def sparse(random: Generator, strength: float = 2.0, share: float = 0.02) -> tuple[Tensor, Tensor, str]:
    labels = (torch.rand(300, 20, generator=random) < share).float()
    return torch.randn(300, 20, generator=random) + strength * labels - 5, labels, MULTI


def numbers(strength: float, num_rows: int = 200) -> Callable[[Generator], tuple[Tensor, Tensor, str]]:
    def make(random: Generator) -> tuple[Tensor, Tensor, str]:
        labels = torch.randn(num_rows, generator=random)
        return (strength * labels + torch.randn(num_rows, generator=random))[:, None], labels, REGRESSION

    return make


def one_wild_number(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = numbers(1.0)(random)
    logits[labels.argmin()] = 1e4
    return logits, labels, problem_type


def other_rows(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = single(3.0, [0.25] * 4, 200)(random)
    return logits.roll(1, dims=0), labels, problem_type


def constant(random: Generator) -> tuple[Tensor, Tensor, str]:
    return torch.tensor([[1.0, 0.0]]).expand(200, 2), classes_of(random, [0.9, 0.1], 200), SINGLE


def turned(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = single(3.0, [0.4, 0.3, 0.2, 0.1], 200)(random)
    return logits.roll(1, dims=-1), labels, problem_type


def two_of_ten_exchanged(random: Generator) -> tuple[Tensor, Tensor, str]:
    logits, labels, problem_type = single(5.0, [0.1] * 10, 600)(random)
    return logits[:, [1, 0, *range(2, 10)]], labels, problem_type


def turned_among_the_like(random: Generator) -> tuple[Tensor, Tensor, str]:
    """A teacher that tells animals from cars, and has the order of the animals and that of the cars wrong."""
    labels = torch.randint(0, 8, (400,), generator=random)
    like = torch.nn.functional.one_hot(labels // 4, 2).repeat_interleave(4, dim=1)
    logits = answers(random, labels, 8, 4.0) + 6 * like
    return logits[:, [1, 2, 3, 0, 5, 6, 7, 4]], labels, SINGLE


def one_class(wrong: int) -> Callable[[Generator], tuple[Tensor, Tensor, str]]:
    return lambda random: (logits_for([1] * wrong + [0] * (100 - wrong), 2), torch.zeros(100).long(), SINGLE)


ACCEPTED = {
    "97 % of one class, and the other never said": never_says_the_rare_class,
    "97 % of one class, and the other always said": always_says_the_rare_class,
    "tokens, 95 % of them O": tokens,
    "hard labels, a third wrong": hard_labels,
    "sparse multi-label": sparse,
    "few rows": single(4.0, [0.5, 0.5], 16),
    "two rows for each of 50 classes": single(1.0, [0.02] * 50, 100),
    "a weak teacher": single(0.8, [0.5, 0.5], 1000),
    "a weak teacher of numbers": numbers(0.6),
    "one wild number": one_wild_number,
}
DOUBTED = {
    "one class, 97 % right": one_class(3),
    "one class, all right": one_class(0),
    "one label": lambda random: (torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, -100.0]), REGRESSION),
    "numbers that are all the same": lambda random: (torch.randn(50, 1), torch.full((50,), 0.1), REGRESSION),
    "multi-label without a positive": lambda random: sparse(random, share=0.0),
    "three rows": lambda random: (logits_for([0, 1, 0]), torch.tensor([0, 1, 1]), SINGLE),
    "knows nothing, three rows": lambda random: (logits_for([1, 1, 0]), torch.tensor([0, 1, 1]), SINGLE),
    "two positives of 60": lambda random: (
        torch.linspace(0, 1, 60)[:, None] * torch.tensor([-1.0, 1.0]),
        (torch.arange(60) % 30 == 20).long(),
        SINGLE,
    ),
    "hardly a teacher": single(0.3, [0.5, 0.5], 2000),
}
REFUSED = {
    "two classes": single(0.0, [0.5, 0.5], 400),
    "twenty classes": single(0.0, [0.05] * 20, 400),
    "3 % of one class": single(0.0, [0.97, 0.03], 3000),
    "tokens": lambda random: tokens(random, 0.0),
    "multi-label": lambda random: sparse(random, 0.0),
    "numbers": numbers(0.0),
    "another row's inputs": other_rows,
    "one answer for all": constant,
    "one number for all": lambda random: (torch.full((50, 1), 0.7), torch.randn(50, generator=random), REGRESSION),
    "another order": turned,
    "another order among classes that are alike": turned_among_the_like,
    "two of ten exchanged": two_of_ten_exchanged,
    "the opposite sign": lambda random: (lambda logits, *rest: (-logits, *rest))(*numbers(3.0)(random)),
    "multi-label, turned": lambda random: (lambda logits, *rest: (-logits, *rest))(*sparse(random, 4.0)),
}
TEACHERS = [
    pytest.param(make, expected, id=f"{expected}: {name}")
    for expected, teachers in (("accepted", ACCEPTED), ("doubted", DOUBTED), ("refused", REFUSED))
    for name, make in teachers.items()
]


@pytest.mark.parametrize(("make", "expected"), TEACHERS)
def test_a_teacher_is_compared_by_what_chance_and_prevalence_do_not_spoil(
    make: Callable[[Generator], tuple[Tensor, Tensor, str]], expected: str
) -> None:
    """A good teacher of rare classes refused for its accuracy, which a teacher that knows nothing has too."""
    found = [verdict(measured(*make(torch.Generator().manual_seed(seed)))) for seed in range(20)]
    assert found.count(expected) >= 18


@pytest.mark.parametrize(
    "make",
    [
        single(0.8, [0.5, 0.5], 60),
        single(0.8, [0.97, 0.03], 500),
        single(0.8, [0.1] * 10, 60),
        lambda random: sparse(random, 0.7),
        numbers(0.5, 60),
    ],
    ids=["few rows", "3 % positives", "ten classes", "sparse multi-label", "numbers"],
)
def test_a_weak_teacher_is_not_refused_by_bad_luck(
    make: Callable[[Generator], tuple[Tensor, Tensor, str]],
) -> None:
    """A training that is stopped because the evaluation set happened to be drawn badly."""
    found = [verdict(measured(*make(torch.Generator().manual_seed(seed)))) for seed in range(200)]
    assert found.count("refused") <= 6


@pytest.mark.parametrize(
    "make",
    [
        single(0.0, [0.5, 0.5], 100),
        single(0.0, [0.2] * 5, 60),
        single(0.0, [0.97, 0.03], 2000),
        lambda random: sparse(random, 0.0),
        numbers(0.0, 150),
    ],
    ids=["two classes", "five classes", "3 % positives", "sparse multi-label", "numbers"],
)
def test_a_teacher_that_knows_nothing_is_refused(
    make: Callable[[Generator], tuple[Tensor, Tensor, str]],
) -> None:
    """An untrained head that passes: a margin too narrow for the number of labels.

    Two standard errors let one in forty pass, with a warning, so it is the share that is held here.
    """
    found = [verdict(measured(*make(torch.Generator().manual_seed(seed)))) for seed in range(200)]
    assert found.count("refused") >= 180
    assert found.count("accepted") <= 10


@pytest.mark.parametrize("num_rows", range(1, 40, 3))
def test_a_teacher_that_knows_nothing_does_not_pass_in_silence(num_rows: int) -> None:
    """Three lucky answers of three."""
    make = single(0.0, [0.5, 0.3, 0.2], num_rows)
    found = [verdict(measured(*make(torch.Generator().manual_seed(seed)))) for seed in range(100)]
    assert found.count("accepted") <= 7


@given(values=st.lists(st.floats(-99, 99, width=32), min_size=2, max_size=6, unique=True))  # -100 is a missing label
@few_examples
def test_a_teacher_without_an_error_is_never_chance(values: list[float]) -> None:
    """A perfect teacher refused because few rows or one class leave nothing to compare with."""
    numbers = torch.tensor(values)
    if float(numbers.double().std()) > 1e-3 * float(numbers.abs().max()):  # else rounding is all there is
        assert not measured(numbers[:, None], numbers, REGRESSION).is_chance
    classes = numbers.gt(0).long()
    assert not measured(logits_for(classes.tolist()), classes, SINGLE).is_chance
    assert not measured(numbers[:, None], classes[:, None].float(), MULTI).is_chance


def test_the_order_that_fits_is_found() -> None:
    """Labels in another order, and nobody says in which."""
    random = torch.Generator().manual_seed(0)
    quality = measured(*turned(random))
    assert quality.order == (3, 0, 1, 2)  # its first class is the last label
    assert quality.ranking_in_order == pytest.approx(0.997, abs=0.005)
    assert quality.cause.startswith("most likely its labels are in another order (its class 0 fits label 3, class 1")
    assert measured(*two_of_ten_exchanged(random)).order == (1, 0, *range(2, 10))
    assert measured(*turned_among_the_like(random)).order == (1, 2, 3, 0, 5, 6, 7, 4)


def test_classes_without_a_row_have_their_place_in_an_order() -> None:
    """An order with one class twice."""
    labels = torch.arange(100) % 2
    quality = measured(logits_for((2 - labels).tolist(), 4), labels, SINGLE)  # says 2 for 0
    assert quality.order == (2, 1, 0, 3)


def test_a_flawless_teacher_is_in_its_own_order() -> None:
    """A perfect teacher refused for the rounding of a sum."""
    for num_classes in range(2, 40):
        labels = torch.arange(7 * num_classes) % num_classes
        quality = measured(logits_for(labels.tolist(), num_classes), labels, SINGLE)
        assert (quality.order, verdict(quality)) == (None, "accepted")


def test_a_cause_that_is_certain_comes_first() -> None:
    """Three causes in one breath, of which two are ruled out."""
    random = torch.Generator().manual_seed(0)
    assert measured(*single(0.0, [0.5, 0.5], 400)(random)).cause.startswith("most likely its head is untrained")
    assert "opposite sign" in measured(*numbers(-3.0)(random)).cause


def test_a_doubt_says_whether_set_or_teacher_is_to_blame() -> None:
    """A teacher called untrained because the data are sorted."""
    random = torch.Generator().manual_seed(0)
    doubts = {name: measured(*make(random)).doubt("the teacher") for name, make in DOUBTED.items()}
    assert str(doubts["one class, 97 % right"]).startswith(
        "how good the teacher is cannot be told, the evaluation labels do not differ between rows (accuracy 0.970 on "
        "100 labels): evaluate on rows with different labels"
    )
    assert "(correlation undefined on 1 label)" in str(doubts["one label"])
    assert "the evaluation set has too few labels to tell" in str(doubts["two positives of 60"])
    assert str(doubts["hardly a teacher"]).startswith("the teacher is little better than chance (accuracy 0.5")


def test_a_set_on_which_the_teacher_is_at_chance_is_no_fault_beside_one_on_which_it_is_good() -> None:
    """A set of hard rows that costs the whole training."""
    random = torch.Generator().manual_seed(0)
    good, bad, alike = (
        measured(*make(random)) for make in (single(3.0, [0.5] * 2, 400), single(0.0, [0.5] * 2, 400), one_class(3))
    )
    with pytest.warns(UserWarning, match=r"the teacher \(evaluation set hard\) predicts .* no better than chance"):
        check_quality("the teacher", {"easy": good, "hard": bad})
    with (
        pytest.warns(UserWarning, match="evaluation set sorted"),
        pytest.raises(ChanceTeacherError, match=r"the teacher \(evaluation set hard\) predicts"),
    ):
        check_quality("the teacher", {"sorted": alike, "hard": bad})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_quality("the teacher", {None: good})


def test_very_many_rows_are_ranked_by_a_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of ranks for a million rows; or the first rows of sorted data, which are of one class."""
    random = torch.Generator().manual_seed(0)
    labels = classes_of(random, [0.5, 0.5], 4000).sort().values
    logits = answers(random, labels, 2, 1.0)
    whole = measured(logits, labels, SINGLE)
    monkeypatch.setattr("hf_distill.evaluation.teacher_quality._MAX_ENTRIES", 1000)
    part = measured(logits, labels, SINGLE)
    assert (part.value, part.num_labels) == (whole.value, 4000)
    assert part.margin == pytest.approx(whole.margin * math.sqrt(8), rel=0.05)
    assert part.ranking == pytest.approx(whole.ranking, abs=part.margin)


def test_a_quality_reads_as_a_sentence() -> None:
    """An error about a teacher that hides the numbers it rests on."""
    quality = TeacherQuality("accuracy", 0.5, 16, 0.625, 0.25)
    assert str(quality) == "accuracy 0.500 on 16 labels, AUC 0.625, chance 0.5 +- 0.250"
    numbers = TeacherQuality("correlation", 0.5, 16, 0.625, 0.25)
    assert str(numbers) == "correlation 0.500 on 16 labels, rank correlation 0.625, chance 0.0 +- 0.250"


def test_the_error_of_many_classes_is_that_of_few():
    """A shortcut for a thousand classes that is another formula."""
    random = torch.Generator().manual_seed(0)
    ranks, true = (torch.randn(20, 30, generator=random, dtype=torch.double) for _ in range(2))
    ranks[:, 3] = 0
    counts = torch.full((30,), 20)
    by_rows = teacher_quality._standard_error(ranks, true, counts)
    twice = [torch.cat([values, torch.zeros(20, 30, dtype=torch.double)]) for values in (ranks, true)]
    assert by_rows == pytest.approx(teacher_quality._standard_error(*twice, counts))
