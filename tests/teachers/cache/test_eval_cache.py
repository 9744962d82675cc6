"""Whether a batch is known again, and no other is taken for it."""

import pytest
import torch

from hf_distill.teachers.cache.eval_cache import EvalCache, content_of, digest_on_device
from hf_distill.teachers.source import TeacherOutput

TYPES = ["bool", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]


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

    @pytest.mark.parametrize("dtype", TYPES)
    def test_on_a_device_each_bit_counts(self, dtype):
        """Images that differ in one value of the last bits have one digest on a GPU."""
        values = torch.randint(0, 2, (5, 7, 3), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
        first = digest_on_device(values).tolist()
        assert digest_on_device(values.transpose(0, 1).contiguous().transpose(0, 1)).tolist() == first
        seen = {tuple(first)}
        flat = torch.view_as_real(values) if values.is_complex() else values
        flat = flat.reshape(-1)
        num_bytes = flat.view(torch.uint8).numel()
        for place in range(num_bytes):
            changed = flat.clone()
            changed.view(torch.uint8)[place] ^= 1
            seen.add(tuple(digest_on_device(changed).tolist()))
        assert len(seen) == num_bytes + 1

    def test_on_a_device_two_changes_do_not_cancel_out(self):
        """A sum of the values, in which two that are swapped, or move in opposite ways, are not seen."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, 1000, (64,), generator=generator)
        seen = {tuple(digest_on_device(values).tolist())}
        for _ in range(300):
            one, other = torch.randperm(64, generator=generator)[:2].tolist()
            changed = values.clone()
            changed[one] += 1
            changed[other] -= 1
            seen.add(tuple(digest_on_device(changed).tolist()))
        assert len(seen) > 250  # some pairs were drawn twice
        for half in zip(*seen, strict=True):
            assert len(set(half)) == len(seen)


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
