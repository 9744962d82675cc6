import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.data.targets import PROBLEM_TYPES
from hf_distill.teachers.ensemble import MEANS, check_weights, combine_logits
from hf_distill.training.losses.soft import soft_target_loss

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
ARITHMETIC, GEOMETRIC = MEANS
INF = math.inf
each_kind = pytest.mark.parametrize(
    ("problem_type", "combination"),
    [(SINGLE, ARITHMETIC), (SINGLE, GEOMETRIC), (MULTI, ARITHMETIC), (MULTI, GEOMETRIC), (REGRESSION, ARITHMETIC)],
)
few_examples = settings(max_examples=25, deadline=None)
temperatures = st.floats(0.5, 20)


def random_members(count: int = 3, shape: tuple[int, ...] = (4, 5), dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(3)
    return (3 * torch.randn(count, *shape, generator=random, dtype=torch.float64)).to(dtype)


def ensembles() -> st.SearchStrategy[tuple[Tensor, list[float]]]:
    """Draw members `(members, rows, num_labels)` and their weights, some of which may be zero."""
    return st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 5)).flatmap(
        lambda shape: st.tuples(
            st.lists(st.floats(-20, 20), min_size=math.prod(shape), max_size=math.prod(shape)).map(
                lambda values: torch.tensor(values, dtype=torch.float64).view(shape)
            ),
            st.lists(st.floats(0, 5), min_size=shape[0], max_size=shape[0]).filter(lambda weights: sum(weights) > 1e-3),
        )
    )


def plain(members: Tensor, weights: list[float], temperature: float, problem_type: str, combination: str) -> Tensor:
    """Return the mean distribution, from its definition: products and sums of probabilities."""
    share = torch.tensor(weights, dtype=members.dtype).view(-1, *[1] * (members.dim() - 1)) / sum(weights)
    scaled = members / temperature
    if problem_type == SINGLE:
        probabilities = scaled.softmax(-1)
        if combination == ARITHMETIC:
            return (share * probabilities).sum(0)
        product = (probabilities**share).prod(0)
        return product / product.sum(-1, keepdim=True)
    yes, no = scaled.sigmoid(), (-scaled).sigmoid()
    if combination == ARITHMETIC:
        return (share * yes).sum(0)
    yes, no = (yes**share).prod(0), (no**share).prod(0)
    return yes / (yes + no)


def distribution(logits: Tensor, temperature: float, problem_type: str) -> Tensor:
    scaled = logits / temperature
    return scaled.softmax(-1) if problem_type == SINGLE else scaled.sigmoid()


# ---- Values ----


@pytest.mark.parametrize("combination", MEANS)
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@given(ensemble=ensembles(), temperature=temperatures)
@few_examples
def test_the_result_has_the_mean_distribution_at_its_temperature(
    problem_type: Any, combination: Any, ensemble: tuple[Tensor, list[float]], temperature: float
) -> None:
    """A mean of probabilities taken at temperature 1, whose softened form is no mean of soft targets."""
    members, weights = ensemble
    logits = combine_logits(list(members), weights, temperature, problem_type, combination)
    expected = plain(members, weights, temperature, problem_type, combination)
    torch.testing.assert_close(distribution(logits, temperature, problem_type), expected)


@pytest.mark.parametrize(
    ("problem_type", "combination", "expected"),
    [
        # distributions (3/4, 1/4) and (1/4, 3/4) with weights 3 and 1
        (SINGLE, ARITHMETIC, [5 / 8, 3 / 8]),
        (SINGLE, GEOMETRIC, [math.sqrt(3) / (1 + math.sqrt(3)), 1 / (1 + math.sqrt(3))]),
        # probabilities 3/4 and 1/2 of the first class, 1/2 and 3/4 of the second
        (MULTI, ARITHMETIC, [11 / 16, 9 / 16]),
        (MULTI, GEOMETRIC, [3**0.75 / (1 + 3**0.75), 3**0.25 / (1 + 3**0.25)]),
    ],
)
def test_the_mean_is_the_one_found_by_hand(problem_type: Any, combination: Any, expected: list[float]) -> None:
    """Weights on the wrong member, or one mean in the place of the other."""
    ln3 = math.log(3)
    members = torch.tensor([[[2 * ln3, 0.0]], [[0.0, 2 * ln3]]], dtype=torch.float64)
    logits = combine_logits(list(members), [3, 1], 2.0, problem_type, combination)
    torch.testing.assert_close(distribution(logits, 2.0, problem_type), torch.tensor([expected], dtype=torch.float64))


def test_outputs_of_a_regression_are_averaged() -> None:
    """A softmax or a temperature on numbers that are none of probabilities."""
    mean = combine_logits(
        [torch.tensor([[1.0, -2.0]]), torch.tensor([[5.0, 2.0]])], [1, 3], 7.0, REGRESSION, ARITHMETIC
    )
    torch.testing.assert_close(mean, torch.tensor([[4.0, 1.0]]))


@each_kind
def test_members_that_agree_teach_what_each_of_them_does(problem_type: Any, combination: Any) -> None:
    """A mean that softens or sharpens, which all weights and temperatures would hide."""
    member = random_members(1)[0]
    logits = combine_logits([member] * 3, [1, 2, 3], 3.0, problem_type, combination)
    assert soft_target_loss(logits, member, 3.0, problem_type).abs().max() < 1e-14


@each_kind
def test_the_order_of_the_members_does_not_matter(problem_type: Any, combination: Any) -> None:
    """A member that is merged in by another rule than the first."""
    members = random_members()
    forward = combine_logits(list(members), [1, 2, 3], 2.0, problem_type, combination)
    backward = combine_logits(list(members.flip(0)), [3, 2, 1], 2.0, problem_type, combination)
    torch.testing.assert_close(forward, backward)


@each_kind
def test_tokens_are_combined_like_rows(problem_type: Any, combination: Any) -> None:
    """A softmax over the tokens."""
    members = random_members(3, (2, 4, 5))
    by_token = combine_logits(list(members), None, 2.0, problem_type, combination)
    by_row = combine_logits(list(members.flatten(1, 2)), None, 2.0, problem_type, combination)
    assert torch.equal(by_token.flatten(0, 1), by_row)


@each_kind
def test_a_member_of_weight_zero_has_no_say(problem_type: Any, combination: Any) -> None:
    """0 times minus infinity is NaN; a teacher that is switched off still rules classes out."""
    members = random_members(2)
    silent = members[1].clone()
    silent[:, 0] = -INF
    logits = combine_logits([members[0], silent], [2, 0], 2.0, problem_type, combination)
    assert torch.equal(logits, combine_logits([members[0]], None, 2.0, problem_type, combination))


# ---- Extremes ----


@pytest.mark.parametrize("combination", MEANS)
def test_a_class_that_all_members_rule_out_stays_ruled_out(combination: Any) -> None:
    """NaN in every loss from one class of probability zero."""
    members = random_members(2)
    members[..., 2] = -INF
    logits = combine_logits(list(members), None, 2.0, SINGLE, combination)
    assert logits[:, 2].eq(-INF).all()
    assert logits[:, [0, 1, 3, 4]].isfinite().all()
    assert soft_target_loss(torch.zeros(4, 5), logits, 2.0, SINGLE).isfinite().all()


def test_one_members_veto_counts_in_the_geometric_mean_alone() -> None:
    """A class that one teacher does not know taken from the students of all, or kept against its veto."""
    members = random_members(2)
    members[0, :, 2] = -INF
    arithmetic = combine_logits(list(members), [1, 1], 2.0, SINGLE, ARITHMETIC)
    expected = (members / 2).softmax(-1).mean(0)
    torch.testing.assert_close((arithmetic / 2).softmax(-1), expected)
    assert combine_logits(list(members), [1, 1], 2.0, SINGLE, GEOMETRIC)[:, 2].eq(-INF).all()


def test_a_geometric_mean_with_no_class_left_is_refused() -> None:
    """A softmax over nothing is NaN."""
    members = [torch.tensor([[0.0, -INF], [0.0, 1.0]]), torch.tensor([[-INF, 0.0], [0.0, 1.0]])]
    with pytest.raises(ValueError, match=r"each class is ruled out .* use the arithmetic mean"):
        combine_logits(members, None, 1.0, SINGLE, GEOMETRIC)
    assert combine_logits(members, None, 1.0, SINGLE, ARITHMETIC).isfinite().all()


@pytest.mark.parametrize("combination", MEANS)
def test_multi_label_logits_of_minus_infinity_give_no_nan(combination: Any) -> None:
    """Infinity minus infinity where both members rule a class out."""
    members = [torch.tensor([[-INF, -INF, 1.0]]), torch.tensor([[-INF, 0.0, 1.0]])]
    logits = combine_logits(members, None, 1.0, MULTI, combination)
    assert not logits.isnan().any()
    assert logits[0, 0] == -INF
    assert logits[0, 1] == (-INF if combination == GEOMETRIC else pytest.approx(math.log(1 / 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ([80, 80], 80),
        ([-80, -80], -80),
        ([80, -80], 0),
        ([80, 70], 70 + math.log(2)),  # the mean of e^-80 and e^-70 is half of e^-70
        ([-80, -70], -70 - math.log(2)),
    ],
)
def test_confident_multi_label_members_are_combined_exactly(
    pair: list[int], expected: float, dtype: torch.dtype
) -> None:
    """log(1 - p) of a p that rounds to 1: an infinite logit, and an infinite loss."""
    members = [torch.tensor([[value]], dtype=dtype) for value in pair]
    logits = combine_logits(members, None, 1.0, MULTI, ARITHMETIC)
    torch.testing.assert_close(logits, torch.tensor([[expected]], dtype=dtype), atol=1e-6, rtol=1e-6)


def test_probabilities_that_underflow_are_combined_in_log_space() -> None:
    """A class of probability e^-500 that becomes impossible."""
    members = [torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, -600.0]])]
    logits = combine_logits(members, None, 1.0, SINGLE, ARITHMETIC)
    torch.testing.assert_close(logits[0, 1] - logits[0, 0], torch.tensor(-500 - math.log(2)))


# ---- Types ----


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(problem_type: Any, combination: Any, dtype: torch.dtype) -> None:
    """Soft targets with two or three digits."""
    members = random_members(dtype=dtype)
    logits = combine_logits(list(members), [1, 2, 3], 2.0, problem_type, combination)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, combine_logits(list(members.float()), [1, 2, 3], 2.0, problem_type, combination))


@each_kind
def test_double_precision_stays_and_wins_over_single(problem_type: Any, combination: Any) -> None:
    """Digits lost to the first member's type."""
    single, double = random_members(2)
    assert combine_logits([single, double], None, 2.0, problem_type, combination).dtype == torch.float64
    assert combine_logits([single.half(), double], None, 2.0, problem_type, combination).dtype == torch.float64


@each_kind
def test_the_members_are_neither_changed_nor_differentiated(problem_type: Any, combination: Any) -> None:
    """Cached logits that are wrong at their second use; a graph kept for a backward pass that never comes."""
    members = random_members().requires_grad_()
    before = members.detach().clone()
    logits = combine_logits(list(members), [1, 0, 2], 2.0, problem_type, combination)
    assert not logits.requires_grad
    assert torch.equal(members.detach(), before)


# ---- Settings ----


def test_weights_are_made_to_sum_to_one() -> None:
    """Soft targets that sum to the number of teachers."""
    assert check_weights([1, 3], 2) == (0.25, 0.75)
    assert check_weights([2, 0], 2) == (1.0, 0.0)
    assert check_weights(None, 4) == (0.25,) * 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "got 1 weights for 2 teachers"),
        ([1.0, 1.0, 1.0], "got 3 weights for 2 teachers"),
        ([1.0, -0.5], "weights must be finite numbers, at least 0"),
        ([1.0, math.nan], "weights must be finite numbers"),
        ([1.0, INF], "weights must be finite numbers"),
        ([1e308, 1e308], "weights must be finite numbers"),
        ([0.0, 0.0], "not all 0"),
        (["1", "2"], "weights must be finite numbers"),
        ([True, True], "weights must be finite numbers"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[Any], message: str) -> None:
    """zip() that drops a teacher, a negative vote, or NaN that only the loss shows."""
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 2)
    with pytest.raises(ValueError, match=message):
        combine_logits(list(random_members(2)), weights, 2.0, SINGLE, ARITHMETIC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": []}, "needs at least one teacher"),
        ({"members": [torch.zeros(2, 3), torch.zeros(2, 4)]}, r"have the shapes \[\(2, 3\), \(2, 4\)\]"),
        ({"members": [torch.zeros(2, 3), torch.zeros(1, 3)]}, "the same rows"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"temperature": math.nan}, "temperature must be a finite number > 0"),
        ({"problem_type": "ranking"}, "problem_type must be one of .*, got 'ranking'"),
        ({"combination": "harmonic"}, "combination must be one of arithmetic, geometric, got 'harmonic'"),
        ({"problem_type": REGRESSION, "combination": GEOMETRIC}, "regression has none: use combination='arithmetic'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """Logits broadcast over rows, and settings that fall through to some other mean."""
    arguments: dict[str, Any] = {
        "members": list(random_members(2)),
        "weights": None,
        "temperature": 2.0,
        "problem_type": SINGLE,
        "combination": ARITHMETIC,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        combine_logits(**arguments)
