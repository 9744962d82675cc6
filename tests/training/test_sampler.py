"""Batches of similar length, in the same order in every run."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill.training.sampler import EpochLengthGroupedSampler, row_lengths

BATCH = 8
LENGTHS = [int(n) for n in np.random.default_rng(0).integers(1, 100, 500)]


def order(seed: int = 1, epoch: int = 0, lengths: list[int] = LENGTHS) -> list[int]:
    sampler = EpochLengthGroupedSampler(BATCH, lengths, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


class TestOrder:
    @pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, 401, 500])
    def test_every_row_comes_once(self, count):
        """Rows that are left out or come twice."""
        assert sorted(order(lengths=LENGTHS[:count])) == list(range(count))

    def test_it_depends_on_the_seed_and_the_epoch_alone(self):
        """A run resumed in the middle of an epoch would skip other rows than those it has seen."""
        first = order(epoch=2)
        torch.manual_seed(99)
        np.random.seed(99)
        random.seed(99)
        assert order(epoch=2) == first
        sampler = EpochLengthGroupedSampler(BATCH, LENGTHS, 1)
        for epoch in (0, 1, 2, 2):
            sampler.set_epoch(epoch)
            last = list(sampler)
        assert last == first

    def test_it_leaves_the_global_random_state_alone(self):
        """Dropout would depend on how the rows are drawn."""
        before = torch.get_rng_state()
        order()
        assert torch.equal(torch.get_rng_state(), before)

    def test_epochs_and_seeds_have_orders_of_their_own(self):
        """The same batches in every epoch."""
        assert len({tuple(order(seed, epoch)) for seed, epoch in [(1, 0), (1, 1), (7, 0)]}) == 3

    def test_a_batch_holds_rows_of_similar_length(self):
        """Without grouping most of a batch is padding."""

        def padding(places: list[int]) -> int:
            batches = [[LENGTHS[i] for i in places[start : start + BATCH]] for start in range(0, len(places), BATCH)]
            return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

        assert padding(order()) < padding(list(range(len(LENGTHS)))) / 5


class TestRowLengths:
    IDS = [[1, 2, 3], [1], [], [1, 2]]

    def test_arrow_lists_are_measured(self):
        """The lengths of other rows group nothing."""
        assert row_lengths(Dataset.from_dict({"input_ids": self.IDS}), "input_ids", "length") == [3, 1, 0, 2]

    @pytest.mark.parametrize("columns", [{"input_ids": IDS}, {"input_ids": IDS, "length": [3, 1, 0, 2]}])
    @pytest.mark.parametrize("as_format", [None, "torch", "numpy"])
    def test_selected_rows_are_measured_in_their_order(self, columns, as_format):
        """Arrow keeps all rows under a selection, and would give the lengths of the first ones."""
        rows = Dataset.from_dict(columns).select([3, 0, 3]).with_format(as_format)
        lengths = row_lengths(rows, "input_ids", "length")
        assert lengths == [2, 3, 2]
        assert all(type(length) is int for length in lengths)

    def test_a_column_of_lengths_is_taken_as_it_is(self):
        """All rows would be read to measure what is known."""
        assert row_lengths(Dataset.from_dict({"length": [5, 2]}), "input_ids", "length") == [5, 2]
        assert row_lengths([{"length": 5}, {"length": torch.tensor(2)}], "input_ids", "length") == [5, 2]

    @pytest.mark.parametrize("column", [["a", "b"], [1, None], [2.5, 1.0], [None, None]])
    def test_a_column_that_is_only_called_length_is_left_alone(self, column):
        """A user's column of sizes or texts ends the training before its first step, or groups by what it is not."""
        rows = Dataset.from_dict({"input_ids": [[1, 2], [3]], "length": column})
        assert row_lengths(rows, "input_ids", "length") == [2, 1]
        assert row_lengths(list(rows), "input_ids", "length") == [2, 1]

    def test_rows_in_a_list_are_measured(self):
        """A data set need not be Arrow's."""
        rows = [{"input_ids": torch.ones(4)}, {"input_ids": [1, 2]}]
        assert row_lengths(rows, "input_ids", "length") == [4, 2]

    @pytest.mark.parametrize("rows", [Dataset.from_dict({"text": ["a"]}), [{"text": "a"}]])
    def test_rows_that_cannot_be_measured(self, rows):
        """The remedy is another way to draw rows."""
        with pytest.raises(ValueError, match=r"'input_ids', or 'length' .* have \['text'\]: set train_sampling"):
            row_lengths(rows, "input_ids", "length")
