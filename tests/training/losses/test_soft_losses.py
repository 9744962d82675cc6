"""Every soft loss against a formula in NumPy, by its gradient, at equality, and where it must be refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from torch import Tensor

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.data.targets import PROBLEM_TYPES
from hf_distill.teachers.source import check_logits
from hf_distill.training.losses.soft import soft_target_loss
from hf_distill.training.losses.soft_losses import check_soft_loss, soft_loss

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
each_loss = pytest.mark.parametrize("name", SOFT_LOSSES)
LABELS = torch.tensor([0, 3, -100, 1, 2, 2])


def pair(num_rows: int = 6, num_labels: int = 4, *, scale: float = 2.0) -> Any:
    drawn = torch.randn(2, num_rows, num_labels, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn * scale


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p: Any, q: Any) -> Any:
    return (p * np.log(p / q)).sum(-1)


def dkd(s: Any, t: Any, temperature: float) -> list[float]:
    values = []
    labels = LABELS.numpy()
    for student, teacher, label in zip(s, t, labels, strict=True):
        y = teacher.argmax() if label < 0 else label
        q, p = softmax(student / temperature), softmax(teacher / temperature)
        binary = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        rest = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        values.append(temperature**2 * (binary + 2 * rest))
    return values


def dist(s: Any, t: Any, temperature: float) -> Any:
    q, p = softmax(s / temperature), softmax(t / temperature)
    rows = np.array([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    classes = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return temperature**2 * (rows + classes)


def js(s: Any, t: Any, temperature: float) -> Any:
    q, p = softmax(s / temperature), softmax(t / temperature)
    return temperature**2 * (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def wttm(s: Any, t: Any, temperature: float) -> Any:
    powers = softmax(t) ** (1 / temperature)
    weight = powers.sum(-1)
    return weight * kl(powers / weight[:, None], softmax(s))


def ab(s: Any, t: Any, temperature: float, a: float = 0.8, b: float = 0.3) -> Any:
    q, p = softmax(s / temperature), softmax(t / temperature)
    inner = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -(temperature**2) * inner.sum(-1) / (a * b)


FORMULAS: dict[str, Callable[[Any, Any, float], Any]] = {
    "kl": lambda s, t, x: x**2 * kl(softmax(t / x), softmax(s / x)),
    "reverse_kl": lambda s, t, x: x**2 * kl(softmax(s / x), softmax(t / x)),
    "js": js,
    "mse": lambda s, t, x: ((s - t) ** 2).mean(-1),
    "hard": lambda s, t, x: -np.log(softmax(s))[np.arange(len(s)), t.argmax(-1)],
    "dkd": dkd,
    "dist": dist,
    "wttm": wttm,
    "alpha_beta": ab,
}


def loss(name: str, student: Tensor, teacher: Tensor, temperature: float = 2.0, **options: Any) -> Tensor:
    return soft_loss(name, student, teacher, temperature, SINGLE, **{"labels": LABELS[: len(student)], **options})


@each_loss
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_is_that_of_an_independent_formula(name: str, temperature: float) -> None:
    """A lost T squared, swapped arguments, a wrong sign or weight."""
    student, teacher = pair()
    expected = torch.tensor(np.asarray(FORMULAS[name](student.numpy(), teacher.numpy(), temperature)))
    torch.testing.assert_close(loss(name, student, teacher, temperature), expected, rtol=1e-6, atol=1e-9)


@each_loss
@pytest.mark.parametrize("standardize", [False, True])
def test_gradient_is_that_of_finite_differences(name: str, standardize: bool) -> None:
    """A part that is detached by mistake trains nothing, and the value does not show it."""
    student, teacher = pair()
    assert torch.autograd.gradcheck(
        lambda logits: loss(name, logits, teacher, standardize=standardize), student.requires_grad_()
    )


@each_loss
def test_at_equality_the_gradient_is_zero_and_the_value_the_least(name: str) -> None:
    """A loss whose minimum is elsewhere pulls a student away from its teacher; `hard` is one by its nature."""
    teacher = pair()[1]
    student = teacher.clone().requires_grad_()
    temperature = 1.0 if name == "wttm" else 2.0
    values = loss(name, student, teacher, temperature)
    values.sum().backward()
    assert student.grad is not None
    if name != "hard":
        torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-9, rtol=0)
        torch.testing.assert_close(student.grad, torch.zeros_like(student.grad), atol=1e-6, rtol=0)


@each_loss
def test_half_precision_is_computed_in_single(name: str) -> None:
    student, teacher = pair().to(torch.bfloat16)
    found = loss(name, student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(name, student.float(), teacher.float()))


@pytest.mark.parametrize("name", [name for name, row in SOFT_LOSSES.items() if row.rules_out])
def test_a_class_that_the_teacher_rules_out_is_finite(name: str) -> None:
    student, teacher = pair()
    teacher[:, 3] = -torch.inf
    student.requires_grad_()
    values = loss(name, student, teacher)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_loss
def test_only_a_loss_that_says_so_depends_on_the_batch(name: str) -> None:
    """The trainer's means over accumulated batches are exact for the others alone."""
    student, teacher = pair()
    whole = loss(name, student, teacher)
    parts = torch.cat([loss(name, student[i : i + 3], teacher[i : i + 3], labels=LABELS[i : i + 3]) for i in (0, 3)])
    assert torch.allclose(whole, parts) != SOFT_LOSSES[name].is_of_batch


@pytest.mark.parametrize("name", [name for name, row in SOFT_LOSSES.items() if MULTI in row.problem_types])
def test_each_label_of_several_is_a_distribution_of_its_own(name: str) -> None:
    """Two classes, yes and no, whose logits are those of the label and 0, give the same; the mean is over labels."""
    student, teacher = pair()
    found = soft_loss(name, student, teacher, 2.0, MULTI)
    if name == "mse":
        expected = (student - teacher).square().mean(-1)
    else:
        both = [torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (student, teacher)]
        expected = soft_loss(name, both[0], both[1], 2.0, SINGLE).mean(-1)
    torch.testing.assert_close(found, expected)


def test_matching_logits_is_the_high_temperature_limit_of_kl() -> None:
    """Hinton's equation 4: T^2 KL tends to half the mean squared difference of logits of mean zero."""
    student, teacher = pair()
    limit = soft_target_loss(student, teacher, 1e4, SINGLE)
    matched = loss("mse", student, teacher, options={"zero_mean": 1})
    torch.testing.assert_close(2 * limit, matched, rtol=1e-3, atol=0)


def test_decoupled_with_the_weight_of_the_rest_is_kl() -> None:
    student, teacher = pair()
    p = (teacher / 2).softmax(-1).gather(1, torch.where(LABELS < 0, teacher.argmax(-1), LABELS)[:, None])[:, 0]
    parts = [loss("dkd", student, teacher, options={"target": t, "beta": b}) for t, b in ((1, 0), (0, 1))]
    torch.testing.assert_close(parts[0] + (1 - p) * parts[1], loss("kl", student, teacher))


@pytest.mark.parametrize(("a", "b", "limit"), [(1.0, 1e-5, "kl"), (1e-5, 1.0, "reverse_kl")])
def test_alpha_beta_has_both_divergences_as_limits(a: float, b: float, limit: str) -> None:
    student, teacher = pair()
    found = loss("alpha_beta", student, teacher, options={"a": a, "b": b})
    torch.testing.assert_close(found, loss(limit, student, teacher), rtol=1e-3, atol=1e-3)


def test_rows_that_do_not_count_have_no_part_in_correlation() -> None:
    """Padding, or a row that comes again, would move the value of all others."""
    student, teacher = pair()
    mask = torch.tensor([True, True, True, True, False, False])
    found = loss("dist", student, teacher, mask=mask)[:4]
    torch.testing.assert_close(found, loss("dist", student[:4], teacher[:4], labels=LABELS[:4]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dkd", False, SINGLE, 2), "at least 3 classes"),
        (("kl", True, SINGLE, 2), "standardize_logits needs at least 3 classes"),
        (("kl", True, MULTI, 5), "standardize_logits is for classes"),
        (("hard", False, MULTI, 5), "not for multi_label_classification: take one of kl, reverse_kl, js, mse"),
        (("js", False, REGRESSION, 1), "not for regression: take one of kl, mse"),
    ],
)
def test_what_would_teach_nothing_is_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_soft_loss(*arguments)


def test_correlation_at_two_classes_says_what_is_left_of_it() -> None:
    with pytest.warns(UserWarning, match="its part over the micro-batch alone"):
        check_soft_loss("dist", False, SINGLE, 2)
    student, teacher = pair(num_labels=2)
    full, intra = (loss("dist", student, teacher, options={"inter": inter}) for inter in (1.0, 0.0))
    torch.testing.assert_close(full, intra)


def test_what_has_a_gradient_at_two_classes_is_let_through() -> None:
    """The table's least number of classes is true: at that number the gradient is not rounding."""
    for name, row in SOFT_LOSSES.items():
        student, teacher = pair(num_labels=row.min_classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_soft_loss(name, False, SINGLE, row.min_classes)
        student.requires_grad_()
        loss(name, student, teacher, labels=LABELS.clamp(0, 1)).sum().backward()
        assert student.grad is not None
        assert student.grad.norm() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("kl", {"beta": 1}, "soft_loss kl has none, got beta"),
        ("dkd", {"gamma": 1}, "soft_loss dkd has target, beta, got gamma"),
        ("js", {"beta": 1}, "beta of js must be above 0 and below 1, got 1"),
        ("alpha_beta", {"a": 0}, "a of alpha_beta must be above 0, got 0"),
        ("dkd", {"beta": -1}, "beta of dkd must be at least 0, got -1"),
    ],
)
def test_options_that_it_does_not_have_are_refused(name: str, options: dict, words: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=words):
        DistillationConfig(output_dir=str(tmp_path), soft_loss=name, soft_loss_options=options)


def trained(folder: Any, batch_size: int, function: Any = None, **settings: Any) -> Tensor:
    """Return a student's logits after two steps of SGD over 8 rows each."""
    student, teacher = (tiny.bert(num_labels=3, seed=seed) for seed in (0, 1))
    rows = Dataset.from_dict({"input_ids": [[5 + i, 6, 7] for i in range(16)], "labels": [i % 3 for i in range(16)]})
    args = DistillationConfig(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.1,
        train_sampling_strategy="sequential",
        report_to=[],
        save_strategy="no",
        **settings,
    )
    DistillationTrainer(student, teacher, args, train_dataset=rows, soft_loss_func=function).train()
    with torch.no_grad():
        found: Tensor = student.eval()(input_ids=torch.tensor([[5, 6, 7], [9, 6, 7]])).logits
    return found


@pytest.mark.parametrize("name", ["reverse_kl", "dkd", "wttm", "dist"])
def test_accumulated_batches_are_one_batch_but_for_a_loss_of_the_batch(name: str, tmp_path: Any) -> None:
    """A mean of means; of `dist` it is documented that its part over classes is over the micro-batch."""
    one, several = (trained(tmp_path, size, soft_loss=name) for size in (8, 2))
    assert torch.allclose(one, several, atol=1e-5) != SOFT_LOSSES[name].is_of_batch


def test_a_loss_of_ones_own_takes_the_place_of_the_soft_loss(tmp_path: Any) -> None:
    """A function that is never called, or whose mean is taken twice."""

    def own(student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
        return soft_loss("mse", student, teacher, temperature, SINGLE)

    torch.testing.assert_close(trained(tmp_path, 8, own), trained(tmp_path, 8, soft_loss="mse"))
    with pytest.raises(ValueError, match="one value per row or token"):
        trained(tmp_path, 8, lambda *arguments: own(*arguments).mean())
    with pytest.raises(ValueError, match="leave these out"):
        trained(tmp_path, 8, own, soft_loss="js")


@pytest.mark.parametrize("name", ["reverse_kl", "mse"])
def test_a_loss_that_would_be_infinite_refuses_a_class_ruled_out(name: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="take kl, js, hard, dist or wttm"):
        check_logits(torch.tensor([[0.0, -torch.inf]]), rules_out=SOFT_LOSSES[name].rules_out)
