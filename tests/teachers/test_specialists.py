import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.teachers.specialists import (
    Specialist,
    combine_specialists,
    confusable_classes,
    corrected_dustbin,
    specialist_columns,
    specialist_labels,
)

INF = math.inf
Problem = tuple[Tensor, list[Tensor], list[list[int]]]

few_examples = settings(max_examples=40, deadline=None)
temperatures = st.floats(0.5, 10)
# Specialists that overlap, cover all labels, have one class, are apart, and are the same.
SUBSETS = [[[0, 1, 2], [2, 3, 4]], [[0, 1, 2, 3, 4, 5]], [[1], [1, 4]], [[0, 1], [2, 3], [4, 5]], [[5, 0], [0, 5]]]


def problem(
    classes: list[list[int]], *, rows: int = 20, num_labels: int = 6, scale: float = 2.0, seed: int = 0
) -> Problem:
    """Draw logits of models that have little to do with each other: they disagree, the more so the larger `scale`."""
    random = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return scale * torch.randn(rows, size, generator=random, dtype=torch.float64)

    return draw(num_labels), [draw(len(subset) + 1) for subset in classes], classes


def problems() -> st.SearchStrategy[Problem]:
    return st.builds(
        lambda classes, scale, seed: problem(classes, scale=scale, seed=seed),
        st.sampled_from(SUBSETS),
        st.floats(0.1, 15),
        st.integers(0, 1000),
    )


def is_active(generalist: Tensor, classes: Sequence[Sequence[int]], num_top_classes: int = 1) -> Tensor:
    """Tell `(rows, specialists)` which are active, a row and a class at a time."""
    tops = generalist.argsort(dim=-1, descending=True)[:, :num_top_classes].tolist()
    return torch.tensor([[bool(set(top) & set(subset)) for subset in classes] for top in tops])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def objective(q: Tensor, given: Problem, temperature: float = 1.0, num_top_classes: int = 1) -> Tensor:
    """Return equation 5 for each row, from its definition."""
    generalist, specialists, classes = given
    value = divergence((generalist / temperature).softmax(-1), q)
    active = is_active(generalist, classes, num_top_classes)
    for m, (logits, subset) in enumerate(zip(specialists, classes, strict=True)):
        others = [index for index in range(q.shape[-1]) if index not in subset]
        target = (logits / temperature).softmax(-1)
        if not others:
            target = torch.cat([logits[:, :-1].div(temperature).softmax(-1), torch.zeros(len(q), 1)], dim=-1)
        seen = torch.cat([q[:, subset], q[:, others].sum(-1, keepdim=True)], dim=-1)
        value = value + torch.where(active[:, m], divergence(target, seen), 0.0)
    return value


def combined(given: Problem, temperature: float = 1.0, num_top_classes: int = 1) -> Tensor:
    """Return the distribution `q`."""
    logits = combine_specialists(*given, temperature, num_top_classes=num_top_classes)
    return (logits / temperature).softmax(-1)


# ---- The minimum ----


@pytest.mark.parametrize("classes", SUBSETS)
@pytest.mark.parametrize("num_top_classes", [1, 3])
def test_gradient_descent_on_the_logits_comes_to_the_same_place(classes: list[list[int]], num_top_classes: int) -> None:
    """A distribution that looks plausible and minimises something else."""
    given = problem(classes)
    found = combined(given, 2.0, num_top_classes)
    logits = torch.zeros_like(given[0], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(logits.softmax(-1), given, 2.0, num_top_classes).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found, logits.detach().softmax(-1), atol=1e-6, rtol=0)


@given(given_problem=problems(), num_top_classes=st.integers(1, 6), seed=st.integers(0, 1000))
@few_examples
def test_no_distribution_nearby_or_far_away_is_better(given_problem: Problem, num_top_classes: int, seed: int) -> None:
    """A solver that stops early where confident models disagree."""
    random = torch.Generator().manual_seed(seed)
    q = combined(given_problem, 1.0, num_top_classes)
    best = objective(q, given_problem, 1.0, num_top_classes)
    for size in (1e-6, 1e-3, 0.1, 1.0):
        other = torch.rand(q.shape, generator=random, dtype=q.dtype).pow(4)
        other = (1 - size) * q + size * other / other.sum(-1, keepdim=True)
        assert (objective(other, given_problem, 1.0, num_top_classes) >= best - 1e-12).all()


@given(given_problem=problems(), num_top_classes=st.integers(1, 6))
@few_examples
def test_the_gradient_is_the_same_for_all_classes(given_problem: Problem, num_top_classes: int) -> None:
    """A minimum over the wrong set: mass between two classes or groups that is cheaper the other way round.

    The gradient is taken times q: among classes of next to no probability rounding decides.
    """
    q = combined(given_problem, 1.0, num_top_classes).requires_grad_()
    objective(q, given_problem, 1.0, num_top_classes).sum().backward()
    assert q.grad is not None
    active = is_active(given_problem[0], given_problem[2], num_top_classes).sum(-1, keepdim=True)
    multiplier = (q * q.grad).sum(-1, keepdim=True)
    torch.testing.assert_close(multiplier, -(1 + active).double(), atol=1e-7, rtol=0)
    assert (q * (q.grad - multiplier)).abs().max() < 1e-7


def test_one_specialist_has_a_closed_form() -> None:
    """The mean of the two in its classes; outside, the generalist's ratios and the mean of two masses."""
    generalist = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    specialist = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64)
    q = combined((generalist.log(), [specialist.log()], [[1, 0]]))
    torch.testing.assert_close(q, torch.tensor([[0.55, 0.25, 2 / 15, 1 / 15]], dtype=torch.float64))


def test_confident_models_that_disagree_are_solved_to_the_end() -> None:
    """The plain fixed point, which after 3,000 steps is wrong in the first digit in rows like these."""
    classes = [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 0], [2, 5, 9, 3], [1, 6, 9, 0]]
    given = problem(classes, rows=500, num_labels=10, scale=12)
    generalist, specialists, _ = given
    q = combined(given)
    known, dustbins = generalist.softmax(-1), []
    outside = torch.ones(len(classes), 10, dtype=torch.float64)
    active = is_active(generalist, classes).double()
    for m, (logits, subset) in enumerate(zip(specialists, classes, strict=True)):
        p = logits.softmax(-1) * active[:, m : m + 1]
        known[:, subset] += p[:, :-1]
        dustbins.append(p[:, -1])
        outside[m, subset] = 0

    def stepped(x: Tensor) -> Tensor:
        seen = (torch.stack(dustbins, -1) / (x @ outside.T)).nan_to_num()
        return (known + x * (seen @ outside)) / (1 + active.sum(-1, keepdim=True))

    assert (stepped(q) - q).abs().max() < 1e-7
    slow = generalist.softmax(-1)
    for _ in range(3000):
        slow = stepped(slow)
    assert (slow - q).abs().max() > 0.1  # or these rows show nothing
    assert (objective(q, given) <= objective(slow, given) + 1e-12).all()


# ---- Which specialists have a say ----


@pytest.mark.parametrize(("num_top_classes", "changed"), [(1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3])])
def test_a_specialist_speaks_where_a_top_class_is_its_own(num_top_classes: int, changed: list[int]) -> None:
    """A specialist for birds that has a say on ships, where its softmax means nothing."""
    generalist = torch.tensor(
        [[4.0, 3, 2, 1, 0], [3, 4, 2, 1, 0], [3, 2, 4, 1, 0], [2, 1, 3, 4, 0], [0, 1, 2, 3, 4]], dtype=torch.float64
    )
    specialists = [torch.tensor([[0.0, 3.0, 1.0]], dtype=torch.float64).expand(5, 3)]
    logits = combine_specialists(generalist, specialists, [[0, 1]], 1.0, num_top_classes=num_top_classes)
    silent = [row for row in range(5) if row not in changed]
    assert torch.equal(logits[silent], generalist[silent])
    difference = (logits.softmax(-1) - generalist.softmax(-1)).abs().amax(-1)
    assert (difference[changed] > 0.01).all()


def test_a_ruled_out_class_calls_for_no_specialist() -> None:
    """A specialist for a class of probability zero, which is among the top three of two that are left."""
    generalist = torch.tensor([[1.0, 0.0, -INF, -INF]])
    logits = combine_specialists(generalist, [torch.zeros(1, 3)], [[2, 3]], 1.0, num_top_classes=4)
    assert torch.equal(logits, generalist)


def test_without_specialists_or_rows_the_generalist_is_returned() -> None:
    """An error in the last, empty part of a batch."""
    generalist = torch.randn(3, 4)
    assert torch.equal(combine_specialists(generalist, [], [], 2.0), generalist)
    assert combine_specialists(generalist[:0], [torch.zeros(0, 2)], [[1]], 2.0).shape == (0, 4)


@given(given_problem=problems(), temperature=temperatures, num_top_classes=st.integers(1, 6))
@few_examples
def test_specialists_that_agree_with_the_generalist_change_nothing(
    given_problem: Problem, temperature: float, num_top_classes: int
) -> None:
    """A combination that sharpens or softens what all models say."""
    generalist, _, classes = given_problem
    own = (generalist / temperature).log_softmax(-1)
    agreeing = []
    for subset in classes:
        others = [index for index in range(6) if index not in subset]
        dustbin = own[:, others].logsumexp(-1, keepdim=True) if others else own.new_full((len(own), 1), -INF)
        agreeing.append(temperature * torch.cat([own[:, subset], dustbin], dim=-1))
    q = combined((generalist, agreeing, classes), temperature, num_top_classes)
    torch.testing.assert_close(q, own.exp(), atol=1e-12, rtol=1e-9)


@given(given_problem=problems(), temperature=temperatures, num_top_classes=st.integers(1, 6))
@few_examples
def test_logits_are_those_of_a_distribution_at_the_temperature(
    given_problem: Problem, temperature: float, num_top_classes: int
) -> None:
    """A temperature that is applied twice or to some of the models only."""
    generalist, specialists, classes = given_problem
    logits = combine_specialists(*given_problem, temperature, num_top_classes=num_top_classes)
    assert logits.isfinite().all()
    scaled = (generalist / temperature, [x / temperature for x in specialists], classes)
    torch.testing.assert_close((logits / temperature).softmax(-1), combined(scaled, 1.0, num_top_classes))


@given(given_problem=problems(), order=st.permutations(range(6)), num_top_classes=st.integers(1, 6))
@few_examples
def test_the_order_of_labels_and_of_specialists_does_not_matter(
    given_problem: Problem, order: list[int], num_top_classes: int
) -> None:
    """Logits of a specialist that land on other classes."""
    generalist, specialists, classes = given_problem
    moved = [[order.index(index) for index in subset] for subset in classes]
    other = (generalist[:, order], specialists[::-1], moved[::-1])
    # Where the minimum is all but flat, the two come within the square root of double precision of each other.
    torch.testing.assert_close(
        combined(other, 1.0, num_top_classes),
        combined(given_problem, 1.0, num_top_classes)[:, order],
        atol=1e-6,
        rtol=0,
    )


def test_the_logarithm_of_a_next_to_impossible_class_is_exact_too() -> None:
    """A logit of -60 that becomes -35 because the solver stops there: the size of what a student is taught."""
    generalist = torch.tensor([[0.0, -1.0, -2.0, -60.0]], dtype=torch.float64)
    one, two = generalist[:, [0, 1, 2]], generalist[:, [0, 2, 1]]  # the dustbin of each holds the other's class
    logits = combine_specialists(generalist, [one, two], [[0, 1], [0, 2]], 1.0)
    torch.testing.assert_close(logits, generalist.log_softmax(-1))


@pytest.mark.parametrize("gap", [20, 40, 80, 300])
@pytest.mark.parametrize("num_specialists", [2, 3, 20])
def test_specialists_for_the_same_classes_count_as_often_as_they_are(gap: float, num_specialists: int) -> None:
    """Equal dustbins, which make the linear system singular where the generalist rules out what they hold."""
    generalist = torch.tensor([[0.0, -1.0, -gap, -gap - 1]], dtype=torch.float64)
    specialist = torch.tensor([[-gap, -gap, 0.0]], dtype=torch.float64)
    q = combined((generalist, [specialist] * num_specialists, [[0, 1]] * num_specialists))
    own, share = generalist.softmax(-1)[0], 1 / (1 + num_specialists)
    inside, outside = share * own[:2], (1 - share) * torch.tensor([0.0, -1.0]).double().softmax(-1)
    torch.testing.assert_close(q[0], torch.cat([inside, outside]), atol=1e-8, rtol=0)


def test_a_batch_of_tokens_has_the_results_of_its_rows() -> None:
    """Rows that are solved together and get each other's answer."""
    generalist, specialists, classes = problem(SUBSETS[0], rows=24)
    together = combine_specialists(generalist, specialists, classes, 2.0, num_top_classes=2)
    shaped = combine_specialists(
        generalist.view(4, 6, 6), [x.view(4, 6, -1) for x in specialists], classes, 2.0, num_top_classes=2
    )
    assert torch.equal(shaped.view(24, 6), together)
    singles = [
        combine_specialists(generalist[i : i + 1], [x[i : i + 1] for x in specialists], classes, 2.0, num_top_classes=2)
        for i in range(24)
    ]
    torch.testing.assert_close(torch.cat(singles), together)


# ---- Extremes ----


@pytest.mark.parametrize("num_top_classes", [1, 4])
def test_ruled_out_classes_give_no_nan_and_stay_ruled_out(num_top_classes: int) -> None:
    """-inf minus -inf somewhere on the way."""
    generalist, specialists, classes = problem([[0, 1, 2], [2, 3], [0, 5]])
    generalist[:, [1, 4]] = -INF
    specialists[0][:, 1] = -INF
    logits = combine_specialists(generalist, specialists, classes, 2.0, num_top_classes=num_top_classes)
    assert not logits.isnan().any()
    assert logits[:, [1, 4]].eq(-INF).all()
    assert logits[:, [0, 2, 3, 5]].isfinite().all()


def test_a_specialist_can_bring_back_a_class_that_the_generalist_rules_out() -> None:
    """Equation 5 is infinite at a q that gives such a class nothing."""
    generalist = torch.tensor([[0.0, -INF, 0.0]], dtype=torch.float64)
    specialist = torch.tensor([[0.0, 0.0, -INF]], dtype=torch.float64)
    torch.testing.assert_close(
        combined((generalist, [specialist], [[0, 1]])), torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    )


@pytest.mark.parametrize("classes", [[[0, 1, 2, 3]], [[0, 1, 2, 3], [0, 1]], [[0, 1, 2]]])
def test_a_dustbin_that_nothing_can_be_in_is_left_out(classes: list[list[int]]) -> None:
    """Probability that vanishes, or 0 / 0, where a specialist covers all labels or all others are ruled out."""
    generalist, specialists, _ = problem(classes, num_labels=4)
    generalist[:, 3] = -INF
    if len(classes[0]) == 4:
        specialists[0][:, 3] = -INF
    q = combined((generalist, specialists, classes), num_top_classes=3)
    assert not q.isnan().any()
    assert q[:, 3].eq(0).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(20, dtype=torch.float64))
    if len(classes) == 1:
        expected = (generalist.softmax(-1)[:, :3] + specialists[0][:, :3].softmax(-1)) / 2
        torch.testing.assert_close(q[:, :3], expected)


@pytest.mark.parametrize("second", [[], [[0, 2]]])
def test_a_specialist_of_nothing_but_a_dustbin_without_room_has_no_say(second: list[list[int]]) -> None:
    """0 / 0 in the distribution of a specialist of which nothing is left."""
    generalist = torch.tensor([[1.0, 0.5, -INF]], dtype=torch.float64)
    mute = torch.tensor([[-INF, -INF, 0.0]], dtype=torch.float64)
    rest = [torch.tensor([[1.0, -INF, 0.5]], dtype=torch.float64) for _ in second]
    with_it = combined((generalist, [mute, *rest], [[0, 1], *second]))
    torch.testing.assert_close(with_it, combined((generalist, rest, second)))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_any_size_are_solved(temperature: float, dtype: torch.dtype) -> None:
    """Probabilities that underflow in double precision, and a linear system that overflows."""
    generalist, specialists, classes = problem(SUBSETS[0], rows=200, scale=30)
    given = (generalist.to(dtype), [x.to(dtype) for x in specialists], classes)
    logits = combine_specialists(*given, temperature, num_top_classes=3)
    assert not logits.isnan().any()
    q = (logits.double() / temperature).softmax(-1)
    best = objective(q, (generalist, specialists, classes), temperature, 3)
    own = objective((generalist / temperature).softmax(-1), (generalist, specialists, classes), temperature, 3)
    compared = best.isfinite() | (temperature >= 1)  # below, a probability of e^-1000 is 0 to the objective itself
    assert compared.float().mean() > 0.3
    assert (best <= own + 1e-3)[compared].all()


def test_a_small_mass_that_a_dustbin_asks_for_is_not_lost() -> None:
    """The generalist's outside underflows to 0 of 1, and the dustbin's half goes nowhere."""
    generalist = torch.tensor([[0.0, -100.0, -101.0]], dtype=torch.float64)
    specialist = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.75, 0.25 / (1 + math.exp(-1)), 0.25 / (1 + math.exp(1))], dtype=torch.float64)
    torch.testing.assert_close(combined((generalist, [specialist], [[0]]))[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_below_double_give_single_precision(dtype: torch.dtype) -> None:
    """Soft targets with two or three digits, or rounded on the way."""
    generalist, specialists, classes = problem(SUBSETS[0])
    rounded = (generalist.to(dtype), [x.to(dtype) for x in specialists], classes)
    logits = combine_specialists(*rounded, 2.0)
    assert logits.dtype == torch.float32
    exact = combine_specialists(rounded[0].double(), [x.double() for x in rounded[1]], classes, 2.0)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(logits, exact.float())


def test_the_logits_are_neither_changed_nor_differentiated() -> None:
    """Cached logits that are wrong at their second use."""
    generalist, specialists, classes = problem(SUBSETS[0])
    before = [x.clone() for x in (generalist, *specialists)]
    generalist.requires_grad_()
    assert not combine_specialists(generalist, specialists, classes, 2.0).requires_grad
    assert all(torch.equal(x.detach(), y) for x, y in zip((generalist, *specialists), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature must be a finite number > 0, got 0"),
        ({"temperature": INF}, "temperature must be a finite number > 0"),
        ({"num_top_classes": 0}, "num_top_classes must be from 1 to the 4 labels, got 0"),
        ({"num_top_classes": 5}, "got 5"),
        ({"specialists": []}, "got logits of 0 specialists and classes of 1"),
        ({"classes": [[0, 1, 2]]}, r"specialist 0 have shape \(2, 3\), expected \(2, 4\)"),
        ({"specialists": [torch.zeros(1, 3)]}, r"specialist 0 have shape \(1, 3\), expected \(2, 3\)"),
        ({"classes": [[0, 4]]}, r"different indices, from 0 to 3, got \[0, 4\]"),
        ({"classes": [[0, -1]]}, r"different indices, from 0 to 3, got \[0, -1\]"),
        ({"classes": [[0, 0]]}, "one or more different indices"),
        ({"classes": [[]], "specialists": [torch.zeros(2, 1)]}, "one or more different indices"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    """Logits broadcast over rows, negative indices that count from the end, a dustbin taken for a class."""
    arguments: dict[str, Any] = {
        "generalist": torch.zeros(2, 4),
        "specialists": [torch.zeros(2, 3)],
        "classes": [[0, 1]],
        "temperature": 2.0,
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        combine_specialists(**arguments)


# ---- Logits of a specialist ----


def test_oversampling_is_undone_by_bayes_rule() -> None:
    """The correction divided where it is to be multiplied, or made on the wrong column.

    The data have a fifth of their rows in the specialist's two classes, the specialist was shown one half.
    """
    likelihoods = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)  # of a row in each class and in the others
    shown, true = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.08, 0.12, 0.8]).double()
    logits = (likelihoods * shown).log()
    posterior = likelihoods * true / (likelihoods * true).sum()
    torch.testing.assert_close(corrected_dustbin(logits, oversampling=0.8 / 0.2).softmax(-1), posterior)


def test_correcting_the_dustbin_leaves_the_given_logits_alone() -> None:
    """A correction made twice on cached logits, or lost in half precision."""
    logits = torch.zeros(2, 3)
    corrected = corrected_dustbin(logits, 4)
    assert logits.eq(0).all()
    torch.testing.assert_close(corrected, torch.tensor([[0.0, 0.0, math.log(4)]] * 2))
    assert corrected_dustbin(logits.half(), 4).dtype == torch.float32
    assert torch.equal(corrected_dustbin(logits, 1), logits)


@pytest.mark.parametrize("oversampling", [0, -1.0, math.nan, INF, "9", True])
def test_oversampling_that_is_none_is_refused(oversampling: Any) -> None:
    """A dustbin of minus infinity or NaN."""
    with pytest.raises(ValueError, match="oversampling must be a finite number > 0, got"):
        Specialist("folder", oversampling=oversampling)
    with pytest.raises(ValueError, match="oversampling must be a finite number > 0, got"):
        corrected_dustbin(torch.zeros(2, 3), oversampling)


def test_a_specialist_is_by_default_trained_on_the_data_as_they_are() -> None:
    """A correction for what never was."""
    assert (Specialist("folder").oversampling, Specialist("folder").dustbin) == (1.0, "dustbin")


def test_columns_are_found_by_name_with_the_dustbin_last() -> None:
    """The dustbin's probability given to a class, or two classes exchanged."""
    columns, classes = specialist_columns(["Dog", "Dustbin", "cat"], ["bird", "Cat", "dog", "fish"], "dustBIN")
    assert columns == [0, 2, 1]
    assert classes == [2, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"], r"no label named 'dustbin' .*The specialist has cat, dog; the generalist has bird, cat, dog"),
        (["cat", "cow", "dustbin"], r"'cow' is no label of the generalist.*has cat, cow, dustbin; the generalist has"),
        (["dustbin"], "needs at least one class"),
        (["cat", "CAT", "dustbin"], "differ in nothing but case"),
        (["cat", "dustbin", "Dustbin"], "differ in nothing but case"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], message: str) -> None:
    """A specialist without a dustbin gives all of its probability to its own classes on every row."""
    with pytest.raises(ValueError, match=message):
        specialist_columns(labels, ["bird", "cat", "dog"], "dustbin")


def test_labels_of_the_generalist_that_differ_in_case_alone_are_refused() -> None:
    """The last of two labels silently taken."""
    with pytest.raises(ValueError, match="differ in nothing but case"):
        specialist_columns(["cat", "dustbin"], ["cat", "Cat"], "dustbin")


# ---- Making specialists ----


def predictions_that_confuse(groups: list[list[int]], num_labels: int) -> Tensor:
    """Predictions that are divided at random among the classes of one group, for 200 rows each."""
    random = torch.Generator().manual_seed(0)
    probabilities = torch.full((200 * len(groups), num_labels), 1e-4)
    for number, group in enumerate(groups):
        shares = torch.rand(200, len(group), generator=random)
        probabilities[200 * number : 200 * (number + 1), group] = shares / shares.sum(-1, keepdim=True)
    return probabilities / probabilities.sum(-1, keepdim=True)


def test_classes_that_are_predicted_together_are_grouped() -> None:
    """Rows clustered in the place of classes, or groups that change from run to run."""
    groups = [[0, 4, 6], [1, 5], [2, 3, 7]]
    probabilities = predictions_that_confuse(groups, 8)
    assert confusable_classes(probabilities, 3) == groups
    assert confusable_classes(probabilities.half(), 3, seed=5) == groups


def test_a_class_that_is_confused_with_none_is_in_no_group() -> None:
    """A specialist with nothing to tell apart."""
    assert confusable_classes(predictions_that_confuse([[0, 3], [2], [1, 4]], 5), 3) == [[0, 3], [1, 4]]


def test_one_group_holds_all_classes() -> None:
    """An off-by-one in the range of what may be asked for."""
    probabilities = predictions_that_confuse([[0, 1], [2, 3]], 4)
    assert confusable_classes(probabilities, 1) == [[0, 1, 2, 3]]
    assert confusable_classes(probabilities, 4) == []


@pytest.mark.parametrize(
    ("probabilities", "num_groups", "message"),
    [
        (torch.full((5, 4), 0.25), 0, "from 1 to the number of labels, got 0"),
        (torch.full((5, 4), 0.25), 5, "from 1 to the number of labels, got 5"),
        (torch.full((1, 4), 0.25), 2, r"predictions of shape \(1, 4\)"),
        (torch.full((4,), 0.25), 2, r"predictions of shape \(4,\)"),
        (torch.zeros(5, 4), 2, "take the softmax of logits"),
        (torch.tensor([[2.0, -1.0], [0.5, 0.5]]), 2, "take the softmax of logits"),
        (torch.full((5, 4), math.nan), 2, "take the softmax of logits"),
        (torch.full((5, 4), 0.25), 2, "tell only 1 of 4 classes apart, got num_groups=2"),
    ],
)
def test_predictions_that_cannot_be_grouped_are_refused(probabilities: Tensor, num_groups: int, message: str) -> None:
    """Logits clustered as if they were probabilities; K-means that returns fewer clusters with a warning."""
    with pytest.raises(ValueError, match=message):
        confusable_classes(probabilities, num_groups)


def test_labels_become_places_among_the_specialists_classes() -> None:
    """Other classes left out, missing labels turned into the dustbin, or classes sorted on the way."""
    assert specialist_labels([3, 0, 1, 2, -100, 7], [7, 3]) == [1, 2, 2, 2, -100, 0]


def test_labels_fit_the_logits_that_columns_are_found_for() -> None:
    """Training and inference that number the classes differently."""
    names = ["bird", "cat", "dog", "fish"]
    classes = [2, 0]
    own_names = [*(names[index] for index in classes), "dustbin"]
    columns, found = specialist_columns(own_names, names, "dustbin")
    assert found == classes
    assert columns == list(range(3))
    assert specialist_labels([2, 0, 1, 3], classes) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, -1], [0], "or -100 where one is missing, got -1"),
        ([0], [], "one or more different indices"),
        ([0], [1, 1], "one or more different indices"),
        ([0], [-1], "one or more different indices, 0 or more"),
    ],
)
def test_labels_or_classes_that_are_none_are_refused(labels: list[int], classes: list[int], message: str) -> None:
    """A negative label that becomes the dustbin."""
    with pytest.raises(ValueError, match=message):
        specialist_labels(labels, classes)


def test_a_trained_specialist_helps_where_the_generalist_cannot_tell() -> None:
    """All parts right and their sum wrong: sign of the correction, order of the columns, active rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000,), generator=generator)
    # The first input tells classes {0, 1} from 2 and 3, which the generalist sees; the second tells 0 from 1.
    pair = torch.where(labels < 2, 0, labels)
    generalist = 3 * F.one_hot(pair, 4).float()
    generalist[:, 1] = generalist[:, 0]
    generalist[:, 0] += 1e-3 * torch.randn(2000, generator=generator)
    places = torch.tensor(specialist_labels(labels.tolist(), [1, 0]))
    specialist = 2 * F.one_hot(places, 3).float()
    specialist[:, 2] -= math.log(3)  # as if shown three times too often
    specialist = corrected_dustbin(specialist, 3)
    logits = combine_specialists(generalist, [specialist], [[1, 0]], 2.0)
    assert (generalist.argmax(-1) == labels).float().mean() < 0.8
    assert (logits.argmax(-1) == labels).all()
