import copy
import math
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_distill.teachers.model import TeacherModel, check_not_student, label_index
from hf_distill.teachers.source import check_logits

CPU = torch.device("cpu")


def frozen(model: nn.Module, student: nn.Module | None = None, **options: Any) -> TeacherModel:
    student = student or tiny.distilbert()
    named = {name: options.pop(name, None) for name in ("label_map", "problem_type")}
    return TeacherModel(model, student, label_index(model, student, **named), device=CPU, **options)


def text_batch() -> dict[str, Tensor]:
    rows = tiny.text_rows(4)
    return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def logits_by_hand(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    return logits


def overwriting(graph: Any, inputs: Any) -> Any:
    """Compile as CUDA graphs do: each run writes its outputs where the last one did."""
    kept: list[Tensor] = []

    def run(*values: Any) -> Any:
        outputs = graph(*values)
        if not kept:
            kept.extend(torch.empty_like(output) for output in outputs)
        return tuple(place.copy_(output) for place, output in zip(kept, outputs, strict=True))

    return run


def test_a_compiled_teacher_s_logits_outlive_its_next_run() -> None:
    """Soft targets of one batch kept for the one before, which is written down while the next is at work."""
    model = tiny.bert()
    batch = text_batch()
    other = {**batch, "input_ids": batch["input_ids"].flip(0)}
    expected, expected_of_other = (logits_by_hand(copy.deepcopy(model).eval(), each) for each in (batch, other))
    teacher = frozen(model, compilation={"backend": overwriting})
    first, second = teacher(batch).logits[0], teacher(other).logits[0]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected_of_other)


# ---- Frozen ----


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: get_peft_model(model, LoraConfig(target_modules=["query"]))]
)
def test_no_parameter_of_the_teacher_can_be_trained(wrap: Any) -> None:
    """A teacher that an optimizer moves; a LoRA teacher comes with trainable adapters."""
    model = wrap(tiny.bert())
    assert any(parameter.requires_grad for parameter in model.parameters())
    frozen(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_logits_have_no_gradient() -> None:
    """The teacher's activations kept in memory for a backward pass that never comes."""
    logits = frozen(tiny.bert())(text_batch()).logits[0]
    assert not logits.requires_grad
    assert logits.grad_fn is None


def test_dropout_stays_off_even_after_a_parent_is_put_in_training_mode() -> None:
    """Noise in the soft targets, from `model.train()` on whatever holds both models."""
    model = tiny.bert(dropout=0.5)
    teacher = frozen(model)
    batch = text_batch()
    expected = logits_by_hand(model.eval(), batch)
    parent = nn.ModuleList([model])
    parent.train()
    assert model.training
    assert torch.equal(teacher(batch).logits[0], expected)
    assert not any(module.training for module in model.modules())


def test_a_teacher_in_training_mode_is_put_in_evaluation_mode() -> None:
    """The mode that a model built from a config starts in."""
    model = tiny.bert(dropout=0.5).train()
    assert torch.equal(frozen(model)(text_batch()).logits[0], logits_by_hand(tiny.bert().eval(), text_batch()))


# ---- Inputs ----


def test_inputs_that_the_teacher_does_not_take_are_left_out() -> None:
    """A TypeError, or a student's inputs that land in `**kwargs` and mean something else there."""
    teacher = frozen(tiny.distilbert(), tiny.bert())
    batch = text_batch()
    more = {**batch, "token_type_ids": torch.ones_like(batch["input_ids"]), "labels": torch.zeros(4), "rows": ["a"] * 4}
    assert torch.equal(teacher(more).logits[0], teacher(batch).logits[0])


def test_labels_are_never_an_input() -> None:
    """A loss computed in every step by the teacher, which fails on labels that only the student has."""
    assert "labels" not in frozen(tiny.bert()).inputs


def test_inputs_that_only_the_teacher_takes_are_known() -> None:
    """`token_type_ids` that the collator leaves out because the student has no use for them."""
    assert "token_type_ids" in frozen(tiny.bert(), tiny.distilbert()).batch_keys
    assert "token_type_ids" not in frozen(tiny.bert(), tiny.bert(seed=1)).batch_keys


def test_a_peft_teacher_takes_the_inputs_of_the_model_inside() -> None:
    """`forward(*args, **kwargs)` names no input, so the teacher would get none."""
    inside = frozen(tiny.bert()).inputs
    assert "input_ids" in inside
    assert frozen(get_peft_model(tiny.bert(), LoraConfig(target_modules=["query"]))).inputs == inside


# ---- Labels ----


def test_logits_come_in_the_order_of_the_students_labels() -> None:
    """Soft targets of one class taught as another's."""
    names = ["blue", "red", "green"]
    student = tiny.distilbert(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    batch = text_batch()
    expected = logits_by_hand(tiny.bert().eval(), batch)[:, [2, 0, 1]]
    assert torch.equal(frozen(tiny.bert(), student)(batch).logits[0], expected)


def test_labels_of_tokens_are_reordered_along_the_last_dimension() -> None:
    """Tokens reordered in the place of labels."""
    names = ["blue", "red", "green"]
    student = tiny.bert_for_tokens(
        1, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    logits = frozen(tiny.bert_for_tokens(), student)(text_batch()).logits[0]
    assert torch.equal(logits, logits_by_hand(tiny.bert_for_tokens().eval(), text_batch())[:, :, [2, 0, 1]])


def test_a_label_map_picks_the_teachers_logits() -> None:
    """A map that is checked and then not used."""
    student = tiny.distilbert(id2label={0: "cold", 1: "warm"}, label2id={"cold": 0, "warm": 1})
    teacher = frozen(tiny.bert(), student, label_map={"cold": "blue", "warm": "red"})
    expected = logits_by_hand(tiny.bert().eval(), text_batch())[:, [2, 0]]
    assert torch.equal(teacher(text_batch()).logits[0], expected)


def test_labels_that_do_not_correspond_are_refused() -> None:
    """Two label spaces joined by position."""
    student = tiny.distilbert(id2label={0: "cat", 1: "dog", 2: "cow"}, label2id={"cat": 0, "dog": 1, "cow": 2})
    with pytest.raises(ValueError, match="the teacher has no label named 'cat', 'dog', 'cow'"):
        frozen(tiny.bert(), student)


def test_outputs_of_a_regression_are_not_compared_by_name() -> None:
    """Numbers reordered by names that only classes have."""
    student = tiny.distilbert(id2label={0: "green", 1: "red", 2: "x"}, label2id={"green": 0, "red": 1, "x": 2})
    teacher = frozen(tiny.bert(), student, problem_type="regression")
    assert torch.equal(teacher(text_batch()).logits[0], logits_by_hand(tiny.bert().eval(), text_batch()))


def test_another_number_of_outputs_is_refused_in_regression() -> None:
    """A squared error broadcast over the outputs."""
    with pytest.raises(ValueError, match="the teacher has 3 outputs, the student 2"):
        frozen(tiny.bert(), tiny.distilbert(**tiny.labels(2)), problem_type="regression")


def test_a_model_without_a_config_answers_as_it_is() -> None:
    """An AttributeError for a teacher that is a plain module."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, points: Tensor) -> tuple[Tensor]:
            return (self.head(points),)

    model, points = Plain(), torch.randn(4, 2)
    teacher = frozen(model)
    assert torch.equal(teacher({"points": points, "input_ids": torch.ones(4)}).logits[0], model.head(points))


# ---- Types ----


def test_weights_and_floating_inputs_take_the_type_asked_for() -> None:
    """float32 pixels against bfloat16 weights, which fails, or token ids made floating, which fails too."""
    model = tiny.vit()
    pixels = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    exact = logits_by_hand(tiny.vit().eval(), {"pixel_values": pixels})
    logits = frozen(model, tiny.vit(1), dtype="bfloat16")({"pixel_values": pixels}).logits[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    text = frozen(tiny.bert(), dtype="bfloat16")(text_batch()).logits[0]
    torch.testing.assert_close(text.float(), logits_by_hand(tiny.bert().eval(), text_batch()), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_weights_keep_their_type_unless_another_is_asked_for(dtype: str | None) -> None:
    """A half-precision teacher that silently takes twice its memory."""
    model = tiny.bert().bfloat16()
    frozen(model, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---- One model twice ----


def test_the_student_is_refused_as_its_own_teacher() -> None:
    """Freezing the teacher freezes the student: nothing trains and nothing says so."""
    model = tiny.bert()
    with pytest.raises(ValueError, match=r"the teacher is the student.*copy\.deepcopy"):
        frozen(model, model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_student_that_shares_some_parameters_is_refused_by_their_names() -> None:
    """Shared embeddings that stay as they are while the rest of the student trains."""
    teacher, student = tiny.bert(), tiny.bert(1)
    student.bert.embeddings = teacher.bert.embeddings
    with pytest.raises(ValueError, match=r"shares bert\.embeddings\.word_embeddings\.weight, .* \.\.\. with"):
        frozen(teacher, student)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_student_that_wraps_its_teacher_is_refused() -> None:
    """LoRA on the teacher itself: another object, the same weights."""
    teacher = tiny.bert()
    with pytest.raises(ValueError, match=r"the teacher shares .* with the student"):
        frozen(teacher, get_peft_model(teacher, LoraConfig(target_modules=["query"])))


def test_a_copy_may_teach() -> None:
    """Equal weights taken for shared ones."""
    model = tiny.bert()
    check_not_student(copy.deepcopy(model), model)


# ---- Logits that are not numbers ----


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused_with_their_count(value: float) -> None:
    """A teacher that overflows in float16 and turns the student into NaN."""
    logits = torch.zeros(2, 3)
    logits[1, :2] = value
    with pytest.raises(ValueError, match=r"in 2 of 6 places.*float16 overflows.*use bfloat16"):
        check_logits(logits)


def test_a_class_ruled_out_by_minus_infinity_is_allowed() -> None:
    """A mask over classes taken for damage."""
    check_logits(torch.tensor([[0.0, -math.inf, 1.0]]))
