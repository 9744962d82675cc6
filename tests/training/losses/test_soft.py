import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.trainer_pt_utils import LabelSmoother

from hf_distill.data.targets import PROBLEM_TYPES, label_mask, token_mask
from hf_distill.training.losses.soft import label_loss, soft_target_loss

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
each_problem_type = pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
each_classification = pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
LN3 = math.log(3)

few_examples = settings(max_examples=25, deadline=None)
temperatures = st.floats(0.5, 20)


def logits_of_rows(dtype: torch.dtype = torch.float64, low: float = -10, high: float = 10) -> st.SearchStrategy[Tensor]:
    """Draw a pair of logits, the student's and the teacher's: `(2, rows, num_labels)`."""
    numbers = st.floats(low, high, width=32)
    return st.tuples(st.integers(1, 3), st.integers(2, 5)).flatmap(
        lambda shape: st.lists(numbers, min_size=2 * math.prod(shape), max_size=2 * math.prod(shape)).map(
            lambda values: torch.tensor(values, dtype=dtype).view(2, *shape)
        )
    )


def random_pair(shape: tuple[int, ...] = (4, 3), *, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * scale).to(dtype)


def gradient(student: Tensor, teacher: Tensor, temperature: float, problem_type: str) -> Tensor:
    student = student.clone().requires_grad_()
    soft_target_loss(student, teacher, temperature, problem_type).sum().backward()
    assert student.grad is not None
    return student.grad


# ---- Soft targets: values ----


@pytest.mark.parametrize(
    ("problem_type", "student", "teacher", "temperature", "expected"),
    [
        (SINGLE, [0, LN3], [0, 0], 1, 0.5 * math.log(4 / 3)),  # (1/4, 3/4) against (1/2, 1/2)
        (SINGLE, [0, 2 * LN3], [0, 0], 2, 2 * math.log(4 / 3)),  # the same distributions, times 4
        (SINGLE, [0, 0], [0, LN3], 1, 0.75 * LN3 - math.log(2)),  # the divergence has a direction
        (MULTI, [LN3, LN3], [0, LN3], 1, 0.25 * math.log(4 / 3)),  # one class of two is off
        (MULTI, [2 * LN3, 2 * LN3], [0, 2 * LN3], 2, math.log(4 / 3)),
        (REGRESSION, [3, 2], [1, 2], 1, 2),
        (REGRESSION, [3, 2], [1, 2], 7, 2),  # temperature cancels
    ],
)
def test_soft_target_loss_is_the_value_found_by_hand(
    problem_type: str, student: list[float], teacher: list[float], temperature: float, expected: float
) -> None:
    """A lost T squared, swapped arguments, or a sum over classes where a mean belongs."""
    pair = torch.tensor([[student], [teacher]], dtype=torch.float64)
    loss = soft_target_loss(*pair, temperature, problem_type)
    torch.testing.assert_close(loss, torch.tensor([expected], dtype=torch.float64))


@each_problem_type
@given(pair=logits_of_rows(), temperature=temperatures)
@few_examples
def test_soft_target_loss_agrees_with_a_plain_implementation(
    problem_type: str, pair: Tensor, temperature: float
) -> None:
    """A term of the divergence left out, which no test with round numbers shows."""
    student, teacher = pair / temperature
    plain = {
        SINGLE: F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1),
        MULTI: (
            F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
            - F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="none")
        ).mean(-1),
        REGRESSION: F.mse_loss(student, teacher, reduction="none").mean(-1),
    }[problem_type]
    torch.testing.assert_close(soft_target_loss(*pair, temperature, problem_type), plain * temperature**2)


@each_problem_type
@given(pair=logits_of_rows(), temperature=temperatures)
@few_examples
def test_a_batch_has_the_losses_of_its_rows(problem_type: str, pair: Tensor, temperature: float) -> None:
    """A softmax or a mean over the batch instead of the labels."""
    singles = [soft_target_loss(*pair[:, row], temperature, problem_type) for row in range(pair.shape[1])]
    torch.testing.assert_close(soft_target_loss(*pair, temperature, problem_type), torch.stack(singles))


@each_problem_type
def test_tokens_have_the_losses_of_rows(problem_type: str) -> None:
    """A softmax over the tokens, which has the right shape as well."""
    pair = random_pair((2, 5, 3))
    by_token = soft_target_loss(*pair, 2.0, problem_type)
    assert by_token.shape == (2, 5)
    assert torch.equal(by_token.flatten(), soft_target_loss(*pair.flatten(1, 2), 2.0, problem_type))


@each_problem_type
@given(pair=logits_of_rows(torch.float32, -1e4, 1e4), temperature=temperatures)
@few_examples
def test_loss_is_exactly_zero_and_gradient_at_rounding_when_student_equals_teacher(
    problem_type: str, pair: Tensor, temperature: float
) -> None:
    """A cross entropy in the place of the divergence: its minimum is the teacher's entropy, not 0."""
    logits = pair[0]
    assert soft_target_loss(logits, logits.clone(), temperature, problem_type).eq(0).all()
    assert gradient(logits, logits.clone(), temperature, problem_type).abs().max() <= temperature * 1e-6


@each_problem_type
@given(pair=logits_of_rows(torch.float32, -1e4, 1e4), temperature=temperatures)
@few_examples
def test_loss_is_never_negative_or_infinite(problem_type: str, pair: Tensor, temperature: float) -> None:
    """Probabilities that underflow to 0 and give `0 * inf`, or a logarithm of 0."""
    loss = soft_target_loss(*pair, temperature, problem_type)
    assert loss.isfinite().all()
    assert (loss >= -1e-6 * temperature**2).all()
    assert gradient(*pair, temperature, problem_type).isfinite().all()


def test_a_constant_added_to_all_logits_changes_nothing_for_single_labels() -> None:
    """Logits compared instead of distributions."""
    student, teacher = random_pair()
    shifted = soft_target_loss(student + 5, teacher - 7, 3.0, SINGLE)
    torch.testing.assert_close(shifted, soft_target_loss(student, teacher, 3.0, SINGLE))


# ---- Soft targets: gradients ----


@each_problem_type
@given(pair=logits_of_rows(), temperature=temperatures)
@few_examples
def test_gradient_is_the_analytic_one(problem_type: str, pair: Tensor, temperature: float) -> None:
    """A wrong power of T: the value at T = 1 does not show it."""
    student, teacher = pair
    num_labels = student.shape[-1]
    at_t = student / temperature, teacher / temperature
    expected = {
        SINGLE: (at_t[0].softmax(-1) - at_t[1].softmax(-1)) * temperature,
        MULTI: (at_t[0].sigmoid() - at_t[1].sigmoid()) * temperature / num_labels,
        REGRESSION: 2 * (student - teacher) / num_labels,
    }[problem_type]
    torch.testing.assert_close(gradient(student, teacher, temperature, problem_type), expected, atol=1e-9, rtol=1e-6)


@each_problem_type
def test_gradient_keeps_its_size_as_the_temperature_grows(problem_type: str) -> None:
    """No T squared: at T = 20 the teacher would weigh 400 times less than at T = 1."""
    pair = random_pair((16, 5), scale=1.0)
    sizes = [float(gradient(*pair, temperature, problem_type).norm()) for temperature in (1.0, 4.0, 20.0, 100.0)]
    assert max(sizes) / min(sizes) < 1.5


def test_gradient_tends_to_matching_logits_for_a_high_temperature() -> None:
    """A factor lost against Hinton et al., equation 4, where logits have zero mean."""
    student, teacher = random_pair((4, 5))
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (student, teacher))
    limit = (student - teacher) / 5
    torch.testing.assert_close(gradient(student, teacher, 1e5, SINGLE), limit, atol=1e-4, rtol=1e-3)


@each_problem_type
def test_nothing_flows_into_the_teacher(problem_type: str) -> None:
    """A teacher that is pulled towards its student."""
    student, teacher = (logits.clone().requires_grad_() for logits in random_pair())
    soft_target_loss(student, teacher, 2.0, problem_type).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


# ---- Soft targets: classes ruled out ----


@each_classification
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_class_that_the_teacher_rules_out_gives_a_finite_loss_and_the_analytic_gradient(
    problem_type: str, temperature: float
) -> None:
    """`0 * -inf`, which is NaN: in the value, or in the gradient alone."""
    student, teacher = random_pair()
    teacher[:, 1] = -math.inf
    assert soft_target_loss(student, teacher, temperature, problem_type).isfinite().all()
    probability, scale = (torch.sigmoid, 1 / 3) if problem_type == MULTI else (lambda x: x.softmax(-1), 1.0)
    expected = (probability(student / temperature) - probability(teacher / temperature)) * temperature * scale
    torch.testing.assert_close(gradient(student, teacher, temperature, problem_type), expected)


@each_classification
def test_a_class_that_both_rule_out_gives_a_finite_loss_and_gradient(problem_type: str) -> None:
    """`-inf - -inf`, which is NaN."""
    student, teacher = random_pair()
    teacher[:, 1] = student[:, 1] = -math.inf
    assert soft_target_loss(student, teacher, 2.0, problem_type).isfinite().all()
    assert gradient(student, teacher, 2.0, problem_type).isfinite().all()


# ---- Precision ----


@each_problem_type
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_single_precision(problem_type: str, dtype: torch.dtype) -> None:
    """A divergence taken in 8 bits of mantissa, or a value close to the exact one by luck."""
    half = random_pair((64, 10), dtype=dtype)
    labels = half.new_zeros(64).long() if problem_type == SINGLE else half[1].sigmoid()
    soft = soft_target_loss(*half, 4.0, problem_type)
    hard = label_loss(half[0], labels, problem_type)
    assert soft.dtype == hard.dtype == torch.float32
    assert torch.equal(soft, soft_target_loss(*half.float(), 4.0, problem_type))
    assert torch.equal(hard, label_loss(half[0].float(), labels, problem_type))


@each_problem_type
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_half_precision_is_close_to_double(problem_type: str, dtype: torch.dtype, tolerance: float) -> None:
    """Overflow or cancellation that rounding of the inputs does not explain."""
    exact = random_pair((64, 10))
    loss = soft_target_loss(*exact.to(dtype), 4.0, problem_type)
    torch.testing.assert_close(
        loss.double(), soft_target_loss(*exact, 4.0, problem_type), atol=tolerance, rtol=tolerance
    )
    assert gradient(*exact.to(dtype), 4.0, problem_type).dtype == dtype


@each_problem_type
def test_double_precision_stays_double(problem_type: str) -> None:
    """A detour by single precision: differences of 1e-9 would vanish."""
    student, teacher = random_pair()
    assert soft_target_loss(student, teacher, 2.0, problem_type).dtype == torch.float64
    nudged = soft_target_loss(student + torch.tensor([1e-9, 0, 0]), teacher, 2.0, problem_type)
    assert not torch.equal(nudged, soft_target_loss(student, teacher, 2.0, problem_type))
    labels = torch.zeros(4, dtype=torch.long) if problem_type == SINGLE else torch.zeros(4, 3)
    assert label_loss(student, labels, problem_type).dtype == torch.float64


# ---- Labels: values ----


@pytest.mark.parametrize(
    ("problem_type", "labels", "smoothing", "expected"),
    [
        (SINGLE, [1], 0.0, [math.log(4 / 3)]),
        (SINGLE, [0], 0.0, [math.log(4)]),
        (SINGLE, [1], 0.2, [0.9 * math.log(4 / 3) + 0.1 * math.log(4)]),
        (MULTI, [[1.0, 0.0]], 0.0, [[math.log(2), math.log(4)]]),
        (MULTI, [[0.0, 0.5]], 0.0, [[math.log(2), 0.5 * math.log(4 / 3) + 0.5 * math.log(4)]]),
        (REGRESSION, [[2.0, LN3 - 3]], 0.0, [[4.0, 9.0]]),
    ],
)
def test_label_loss_is_the_value_found_by_hand(
    problem_type: str, labels: list, smoothing: float, expected: list
) -> None:
    """A mean taken here, which the trainer would take a second time."""
    loss = label_loss(torch.tensor([[0.0, LN3]]), torch.tensor(labels), problem_type, smoothing)
    torch.testing.assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize("labels", [torch.tensor([2.0, -1.0]), torch.tensor([[2.0], [-1.0]])])
def test_one_output_takes_labels_with_and_without_its_dimension(labels: Tensor) -> None:
    """`(batch, 1) - (batch,)`, which broadcasts to every pair of rows."""
    loss = label_loss(torch.tensor([[1.0], [1.0]]), labels, REGRESSION)
    assert loss.shape == labels.shape
    assert loss.flatten().tolist() == [1.0, 4.0]


@given(pair=logits_of_rows(), smoothing=st.floats(0, 0.9))
@few_examples
def test_label_loss_agrees_with_torch(pair: Tensor, smoothing: float) -> None:
    """A loss of another name with the right value on round numbers."""
    logits, other = pair
    classes = other.argmax(-1)
    targets = other.sigmoid()
    torch.testing.assert_close(
        label_loss(logits, classes, SINGLE, smoothing).mean(),
        F.cross_entropy(logits, classes, label_smoothing=smoothing),
    )
    torch.testing.assert_close(
        label_loss(logits, targets, MULTI).mean(), F.binary_cross_entropy_with_logits(logits, targets)
    )
    torch.testing.assert_close(label_loss(logits, other, REGRESSION).mean(), F.mse_loss(logits, other))


def _batch(kind: str, *, with_missing: bool, num_labels: int = 3) -> dict[str, Tensor]:
    rows = tiny.text_rows(6, kind, num_labels=num_labels)
    if not with_missing:
        rows = [row for row in rows if not row["labels"].eq(-100).any()]
    assert rows
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("model", "problem_type", "batch"),
    [
        (tiny.bert(problem_type=SINGLE), SINGLE, _batch("single", with_missing=True)),
        (tiny.bert(problem_type=MULTI), MULTI, _batch("multi", with_missing=False)),
        (tiny.bert(problem_type=REGRESSION), REGRESSION, _batch("regression", with_missing=False)),
        (
            tiny.bert(id2label={0: "score"}, label2id={"score": 0}),
            REGRESSION,
            _batch("regression", with_missing=False, num_labels=1),
        ),
        (tiny.bert_for_tokens(), SINGLE, _batch("token", with_missing=True)),
    ],
    ids=["single", "multi", "regression", "one output", "tokens"],
)
def test_mean_of_label_loss_is_the_loss_of_the_model_itself(
    model: Any, problem_type: str, batch: dict[str, Tensor]
) -> None:
    """With alpha = 1 a student would train on another objective than with the plain Trainer."""
    outputs = model(**batch)
    ours = (
        label_loss(outputs.logits, batch["labels"], problem_type).sum()
        / label_mask(batch["labels"], problem_type).sum()
    )
    torch.testing.assert_close(ours, outputs.loss)


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
def test_label_smoothing_is_that_of_transformers(shape: tuple[int, ...]) -> None:
    """Smoothing over the other classes only, a second convention of the same name."""
    logits = random_pair((*shape, 4))[0]
    labels = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = -100
    ours = label_loss(logits, labels, SINGLE, 0.1).sum() / label_mask(labels, SINGLE).sum()
    torch.testing.assert_close(ours, LabelSmoother(epsilon=0.1)({"logits": logits}, labels))


# ---- Labels that are missing ----


@pytest.mark.parametrize(
    ("problem_type", "labels", "expected"),
    [
        (SINGLE, torch.tensor([0, -100, 2]), [True, False, True]),
        (SINGLE, torch.tensor([[1, -100], [-100, -100]]), [[True, False], [False, False]]),
        (MULTI, torch.tensor([[1.0, -100.0, math.nan]]), [[True, False, False]]),
        (MULTI, torch.tensor([[1, -100, 0]]), [[True, False, True]]),
        (REGRESSION, torch.tensor([0.0, -100.0, math.nan, -1.0]), [True, False, False, True]),
    ],
)
def test_label_mask_tells_missing_labels(problem_type: str, labels: Tensor, expected: list) -> None:
    """A missing label counted in the denominator, or 0 taken for missing."""
    assert label_mask(labels, problem_type).tolist() == expected


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE, torch.tensor([2, -100, -100])),
        (MULTI, torch.tensor([[1.0, -100.0, math.nan], [-100.0] * 3, [0.0, 1.0, math.nan]])),
        (MULTI, torch.tensor([[1, -100, 0], [-100] * 3, [0, 1, -100]])),
        (REGRESSION, torch.tensor([[1.0, -100.0, math.nan], [math.nan] * 3, [0.0, 1.0, math.nan]])),
    ],
)
def test_missing_labels_give_no_loss_and_no_gradient(problem_type: str, labels: Tensor) -> None:
    """-100 taken for a number to regress to, or NaN in the gradient of a masked entry."""
    logits = random_pair((3, 3), dtype=torch.float32)[0].requires_grad_()
    missing = ~label_mask(labels, problem_type)
    loss = label_loss(logits, labels, problem_type)
    loss.sum().backward()
    assert logits.grad is not None
    assert loss[missing].eq(0).all()
    assert loss[~missing].gt(0).all()
    assert logits.grad[missing].eq(0).all()
    assert logits.grad[~missing].ne(0).all()


def test_a_batch_without_any_label_gives_zero_not_nan() -> None:
    """A mean over no labels inside the loss."""
    loss = label_loss(torch.randn(2, 3), torch.full((2,), -100), SINGLE, 0.1)
    assert loss.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("attention_mask", "labels", "expected"),
    [
        (None, None, None),
        ([[1, 1, 0]], None, [[True, True, False]]),
        (None, [[5, -100, 0]], [[True, False, True]]),
        (None, [[-100, -100, -100]], [[True, True, True]]),
        ([[1, 1, 0], [1, 1, 0]], [[-100, 2, -100], [-100, -100, -100]], [[False, True, False], [True, True, False]]),
        ([[1, 1, 0]], [[-100, 2, 2]], [[False, True, False]]),
    ],
    ids=["nothing known", "padding", "labels", "no label in the row", "both", "a label on padding"],
)
def test_token_mask_tells_the_tokens_that_have_soft_targets(
    attention_mask: list | None, labels: list | None, expected: list | None
) -> None:
    """A student that learns the teacher's noise on padding, or nothing at all from unlabelled rows."""
    mask = token_mask(
        None if attention_mask is None else torch.tensor(attention_mask),
        None if labels is None else torch.tensor(labels),
    )
    assert (mask if mask is None else mask.tolist()) == expected


# ---- Errors ----


@each_problem_type
def test_logits_of_different_shapes_are_refused(problem_type: str) -> None:
    """`(4, 3)` against `(4, 1)`, which broadcasts without a word."""
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 1\).*same labels"):
        soft_target_loss(torch.zeros(4, 3), torch.zeros(4, 1), 2.0, problem_type)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@each_problem_type
def test_a_temperature_that_is_none_is_refused(problem_type: str, temperature: float) -> None:
    """NaN weights after the first step; regression does not even divide by it."""
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature, problem_type)


def test_an_unknown_problem_type_is_refused_with_the_known_ones() -> None:
    """A misspelt problem type taken for regression."""
    with pytest.raises(ValueError, match=r"single_label_classification, .*, got 'multi_label'"):
        soft_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), 1.0, "multi_label")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"single_label_classification, .*, got 'multi_label'"):
        label_loss(torch.zeros(1, 2), torch.zeros(1, 2), "multi_label")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("problem_type", "labels_shape"),
    [(SINGLE, (4, 3)), (SINGLE, (3,)), (SINGLE, (4, 1)), (MULTI, (4,)), (MULTI, (4, 2)), (REGRESSION, (4,))],
)
def test_labels_that_do_not_fit_the_logits_are_refused(problem_type: str, labels_shape: tuple[int, ...]) -> None:
    """Labels broadcast over the outputs."""
    labels = torch.zeros(labels_shape, dtype=torch.long if problem_type == SINGLE else torch.float)
    with pytest.raises(ValueError, match=r"labels of shape .* do not fit logits of shape .*: expected one"):
        label_loss(torch.zeros(4, 3), labels, problem_type)


@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_label_smoothing_is_refused_where_there_are_no_classes(problem_type: str) -> None:
    """A setting that does nothing."""
    with pytest.raises(ValueError, match=f"{problem_type} has none: set label_smoothing_factor to 0"):
        label_loss(torch.zeros(4, 3), torch.zeros(4, 3), problem_type, 0.1)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 10.0, math.nan])
def test_label_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    """Labels that say nothing (1), or the opposite (above 1)."""
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1"):
        label_loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), SINGLE, smoothing)
