"""Whether a batch is known again, and no other is taken for it."""

import pytest
import torch

from hf_distill.teachers.cache.eval_cache import EvalCache, content_of
from hf_distill.teachers.source import TeacherOutput


class Counting:
    """A teacher that counts how often it is run."""

    can_be_remembered = True

    def __init__(self):
        self.num_computed = 0

    def __call__(self, batch):
        self.num_computed += 1
        return TeacherOutput([batch["input_ids"].float() * 2])


def batch(**changes):
    return {"input_ids": torch.arange(12).reshape(3, 4), "attention_mask": torch.ones(3, 4), **changes}


class TestContent:
    @pytest.mark.parametrize(
        "other",
        [
            batch(input_ids=torch.arange(12).reshape(4, 3)),
            batch(input_ids=torch.arange(12).reshape(3, 4).flip(0)),
            batch(input_ids=torch.arange(12, dtype=torch.int32).reshape(3, 4)),
            batch(attention_mask=torch.ones(3, 4).index_fill(1, torch.tensor([3]), 0)),
            batch(labels=torch.ones(3)),
            {"input_ids": batch()["attention_mask"], "attention_mask": batch()["input_ids"]},
            batch(teacher_inputs=[{"input_ids": torch.ones(3, 2)}]),
        ],
    )
    def test_differs_with_values_places_shapes_types_and_names(self, other):
        """Answers to one batch given for another one: an evaluation loss that is wrong, silently."""
        assert content_of(batch()) == content_of(batch())
        assert content_of(other) == content_of(other)
        assert content_of(batch()) != content_of(other)

    def test_nested_inputs_count(self):
        """A teacher with a tokenizer of its own reads what is inside a list."""
        one, other = (batch(teacher_inputs=[{"input_ids": torch.tensor([[n]])}]) for n in (1, 2))
        assert content_of(one) != content_of(other)

    @pytest.mark.parametrize("extra", ["a text", None, torch.eye(2).to_sparse(), ["a text"]])
    def test_what_is_no_plain_tensor_cannot_be_known_again(self, extra):
        """A text that is left out of the digest, and another one has the same."""
        assert content_of(batch(texts=extra)) is None
        assert content_of({}) is None


class TestEvalCache:
    def test_a_batch_is_asked_about_once(self):
        """Each evaluation costs as much as the first."""
        teacher, remembered = Counting(), EvalCache()
        first, second = (remembered.output(teacher, batch()).logits[0] for _ in range(2))
        assert teacher.num_computed == 1
        assert torch.equal(first, second)
        remembered.output(teacher, batch(input_ids=torch.zeros(3, 4)))
        assert teacher.num_computed == 2

    def test_what_was_given_away_is_not_what_is_kept(self):
        """An answer that a caller changes in place, changed for the next evaluation too."""
        teacher, remembered = Counting(), EvalCache()
        for _ in range(3):
            (logits,) = remembered.output(teacher, batch()).logits
            assert torch.equal(logits, batch()["input_ids"].float() * 2)
            logits.zero_()

    def test_no_more_is_kept_than_there_is_room_for(self):
        """The CPU's memory filled by an evaluation set of other rows each time."""
        teacher, remembered = Counting(), EvalCache(max_bytes=100)
        for _ in range(2):
            for number in range(3):
                remembered.output(teacher, batch(number=torch.tensor(number)))
        assert teacher.num_computed == 3 + 1  # 48 bytes each: two are kept
