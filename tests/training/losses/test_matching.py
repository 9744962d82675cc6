"""Every term of matching against a formula in NumPy, by its gradient, at equality, and in half precision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.training.losses.matching import (
    attention_transfer_loss,
    feature_loss,
    hidden_loss,
    relation_loss,
    rkd_loss,
)

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(x: Any) -> Any:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def huber(difference: Any) -> Any:
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def relations(student: list[Tensor], teacher: list[Tensor], num_heads: int = 2) -> list[float]:
    values = []
    for row, mask in enumerate(MASK.numpy()):
        total = 0.0
        for ours, theirs in zip(student, teacher, strict=True):
            for head in range(num_heads):
                p, q = (
                    softmax(part @ part.T / np.sqrt(part.shape[1]))
                    for part in (np.split(x[row].numpy()[mask], num_heads, axis=1)[head] for x in (theirs, ours))
                )
                total += (p * np.log(p / q)).sum(-1).mean() / num_heads
        values.append(total / 3)
    return values


def of_hidden(student: Tensor, teacher: Tensor, kind: str) -> list[float]:
    values = []
    for ours, theirs, mask in zip(student.numpy(), teacher.numpy(), MASK.numpy(), strict=True):
        a, b = ours[mask], theirs[mask]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        values.append(float((1 - cosine).mean() if kind == "cosine" else ((a - b) ** 2).mean()))
    return values


def of_features(projected: Tensor, teacher: Tensor) -> Any:
    x = teacher.numpy()
    normalized = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return huber(projected.numpy() - normalized).mean(1)


def of_rows(student: Tensor, teacher: Tensor) -> list[float]:
    found = []
    for x in (student.numpy(), teacher.numpy()):
        count = len(x)
        distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        angles = np.zeros((count, count, count))
        for j, i, k in np.ndindex(count, count, count):
            a, b = x[j] - x[i], x[j] - x[k]
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            angles[j, i, k] = a @ b / lengths if lengths else 0
        found.append((distances / distances[distances > 0].mean(), angles))
    (a, b), (c, d) = found
    return [25 * huber(a - c).mean() + 50 * huber(b - d).mean()] * len(student)


def of_maps(student: Tensor, teacher: Tensor) -> Any:
    found = []
    for x in (student.numpy(), teacher.numpy()):
        energy = (x**2).mean(1)
        if energy.shape[-1] == 4:
            energy = energy.reshape(-1, 2, 2, 2, 2).mean((2, 4))
        flat = energy.reshape(len(energy), -1)
        found.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    return ((found[0] - found[1]) ** 2).mean(1)


QKV = [drawn(3, 5, 8, seed=i) for i in range(3)], [drawn(3, 5, 12, seed=i + 3) for i in range(3)]
HIDDEN = drawn(3, 5, 6), drawn(3, 5, 6, seed=1)
FEATURES = drawn(4, 6), drawn(4, 6, seed=1)
MAPS = drawn(3, 4, 2, 2), drawn(3, 6, 4, 4, seed=1)
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Any], Any]] = {
    "relation": (lambda a, b: relation_loss(a, b, MASK, 2), relations, QKV),
    "mse": (lambda a, b: hidden_loss(a, b, MASK, "mse"), lambda a, b: of_hidden(a, b, "mse"), HIDDEN),
    "cosine": (lambda a, b: hidden_loss(a, b, MASK, "cosine"), lambda a, b: of_hidden(a, b, "cosine"), HIDDEN),
    "vkd": (feature_loss, of_features, FEATURES),
    "rkd": (rkd_loss, of_rows, FEATURES),
    "attention": (attention_transfer_loss, of_maps, MAPS),
}
each_term = pytest.mark.parametrize("name", CASES)


@each_term
def test_value_is_that_of_an_independent_formula(name: str) -> None:
    """Padding that counts, a mean of the wrong kind, swapped arguments, a lost scale."""
    function, formula, inputs = CASES[name]
    torch.testing.assert_close(function(*inputs), torch.tensor(np.asarray(formula(*inputs))), rtol=1e-9, atol=1e-12)


@each_term
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    """A part that is detached by mistake trains nothing, and the value does not show it."""
    function, _, (student, teacher) = CASES[name]
    if name == "relation":
        inputs = [part.clone().requires_grad_() for part in student]
        assert torch.autograd.gradcheck(lambda *parts: function(list(parts), teacher), inputs)
    else:
        assert torch.autograd.gradcheck(lambda x: function(x, teacher), student.clone().requires_grad_())


@each_term
def test_at_equality_value_and_gradient_are_zero(name: str) -> None:
    """A term whose minimum is elsewhere pulls a student away from its teacher."""
    function, _, (_, teacher) = CASES[name]
    parts = teacher if isinstance(teacher, list) else [teacher]
    if name == "vkd":  # compared with the teacher's features when they are normalized
        parts = [F.layer_norm(teacher, teacher.shape[-1:])]
    parts = [part.clone().requires_grad_() for part in parts]
    value = function(parts if isinstance(teacher, list) else parts[0], teacher)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    for part in parts:
        assert part.grad is not None
        torch.testing.assert_close(part.grad, torch.zeros_like(part), atol=1e-6, rtol=0)


@each_term
def test_half_precision_is_computed_in_single(name: str) -> None:
    """Squares that overflow, sums that lose their digits."""
    function, _, inputs = CASES[name]
    halves: Any = [[part.bfloat16() for part in side] if isinstance(side, list) else side.bfloat16() for side in inputs]
    singles: Any = [[part.float() for part in side] if isinstance(side, list) else side.float() for side in halves]
    found = function(*halves)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(*singles), rtol=1e-6, atol=1e-6)


def test_a_single_row_has_no_relations_and_a_finite_gradient() -> None:
    """0 divided by 0 in the last batch of an epoch, and NaN from there on."""
    row = drawn(1, 6).requires_grad_()
    value = rkd_loss(row, drawn(1, 6, seed=1))
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert row.grad is not None
    assert bool(row.grad.isfinite().all())


def test_rows_that_are_the_same_have_a_finite_gradient() -> None:
    """The slope of a root at 0."""
    rows = drawn(1, 6).repeat(3, 1).requires_grad_()
    rkd_loss(rows, drawn(3, 6, seed=1)).sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


def test_a_row_of_padding_alone_counts_nothing() -> None:
    """No real token to take a mean over."""
    mask = torch.tensor([[True, True], [False, False]])
    student = [drawn(2, 2, 4, seed=i).requires_grad_() for i in range(3)]
    value = relation_loss(student, [drawn(2, 2, 4, seed=i + 3) for i in range(3)], mask, 2)
    value.sum().backward()
    assert value[1] == 0
    assert value[0] > 0
    assert all(part.grad is not None and bool(part.grad.isfinite().all()) for part in student)
