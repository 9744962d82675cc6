"""What a model reads of texts, pairs of texts and words with tags."""

import datasets
import pytest
import tiny
from datasets import Dataset
from transformers import BertTokenizerLegacy

from hf_distill.data.text import tokenize_text, tokenize_words


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def ids(text: str) -> list[int]:
    return [tiny.VOCABULARY.index(piece) for piece in text.split()]


class TestTexts:
    def test_a_text_is_read_as_the_tokenizer_reads_it(self, tokenizer):
        """Special tokens lost, padding left in, or a label that has moved to another row."""
        rows = Dataset.from_dict({"id": [7, 8], "text": ["a good film", "dull"], "labels": [1, -100]})
        assert tokenize_text(rows, tokenizer, ("text",), None)[:] == {
            "input_ids": [ids("[CLS] a good film [SEP]"), ids("[CLS] dull [SEP]")],
            "token_type_ids": [[0] * 5, [0] * 3],
            "attention_mask": [[1] * 5, [1] * 3],
            "labels": [1, -100],
            "length": [5, 3],
            "text": ["a good film", "dull"],  # from which a teacher may need a view of its own
        }

    def test_a_pair_is_read_as_two_segments(self, tokenizer):
        """The second text dropped, or both joined as one segment."""
        rows = Dataset.from_dict({"first": ["a film"], "second": ["not good"], "labels": [0]})
        (row,) = tokenize_text(rows, tokenizer, ("first", "second"), None)
        assert row["input_ids"] == ids("[CLS] a film [SEP] not good [SEP]")
        assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]

    def test_segments_are_made_where_they_are_asked_for_and_the_tokenizer_would_leave_them_out(self, tokenizer):
        """A DistilBERT tokenizer makes none, and its BERT teacher would read both texts as the first.

        Made for GPT-2, which adds them to its embeddings, they would change what it was trained to read.
        """
        without = tiny.tokenizer()
        without.model_input_names = ["input_ids", "attention_mask"]
        rows = Dataset.from_dict({"first": ["a film"], "second": ["not good"], "labels": [0]})
        (row,) = tokenize_text(rows, without, ("first", "second"), None, segments=True)
        assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
        assert "token_type_ids" not in tokenize_text(rows, without, ("first", "second"), None).column_names

    def test_truncation_keeps_max_length_tokens_with_the_special_ones(self, tokenizer):
        """A cut that loses [SEP], or the whole second text of a pair."""
        rows = Dataset.from_dict({"first": ["a good film but sad"], "second": ["not dull"], "labels": [0]})
        (single,) = tokenize_text(rows, tokenizer, ("first",), 4)
        assert single["input_ids"] == ids("[CLS] a good [SEP]")
        assert single["length"] == 4
        (pair,) = tokenize_text(rows, tokenizer, ("first", "second"), 7)
        assert pair["input_ids"] == ids("[CLS] a good [SEP] not dull [SEP]")

    def test_without_max_length_the_model_sets_it(self, tokenizer):
        """A row longer than the positions of the model stops the run in the middle."""
        rows = Dataset.from_dict({"text": ["film " * 100], "labels": [0]})
        assert tokenize_text(rows, tokenizer, ("text",), None)["length"][:] == [tokenizer.model_max_length]

    def test_a_missing_text_is_an_empty_one(self, tokenizer):
        """An empty cell in a csv file must not stop the run."""
        rows = Dataset.from_dict({"text": ["a", None], "labels": [0, 1]})
        assert tokenize_text(rows, tokenizer, ("text",), None)["input_ids"][1] == ids("[CLS] [SEP]")


class TestWords:
    def test_a_label_goes_to_the_first_piece_of_its_word(self, tokenizer):
        """A word of many pieces would weigh more; labels would slip by one after it."""
        rows = Dataset.from_dict({"words": [["short", "duller", "film"]], "labels": [[0, 1, 2]]})
        (row,) = tokenize_words(rows, tokenizer, "words", None)
        assert row["input_ids"] == ids("[CLS] short dull ##er film [SEP]")
        assert row["labels"] == [-100, 0, 1, -100, 2, -100]
        assert row["length"] == 6

    def test_equal_words_beside_each_other_each_keep_their_label(self, tokenizer):
        """Words told apart by their text and not by their place."""
        rows = Dataset.from_dict({"words": [["very", "very", "good"]], "labels": [[1, 2, -100]]})
        assert tokenize_words(rows, tokenizer, "words", None)["labels"][0] == [-100, 1, 2, -100, -100]

    def test_truncation_cuts_the_labels_with_the_words(self, tokenizer):
        """The labels of the last words given to the ones that are left."""
        rows = Dataset.from_dict({"words": [["a", "good", "film"], ["a"]], "labels": [[0, 1, 2], [2]]})
        tokenized = tokenize_words(rows, tokenizer, "words", 4)
        assert tokenized["labels"][:] == [[-100, 0, 1, -100], [-100, 2, -100]]

    def test_a_row_with_another_number_of_labels_than_words_is_named(self, tokenizer):
        """All labels after the missing one would be off by one."""
        rows = Dataset.from_dict({"words": [["a"]] * 3 + [["a", "film"]], "labels": [[0]] * 4})
        with pytest.raises(ValueError, match="data: row 3 has 2 words and 1 labels"):
            tokenize_words(rows, tokenizer, "words", None)

    def test_a_tokenizer_that_cannot_tell_words_apart_is_refused(self, tmp_path):
        """A slow tokenizer does not know which word a piece belongs to."""
        (tmp_path / "vocab.txt").write_text("\n".join(tiny.VOCABULARY))
        slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
        rows = Dataset.from_dict({"words": [["a"]], "labels": [[0]]})
        with pytest.raises(ValueError, match="needs a fast tokenizer, BertTokenizerLegacy cannot"):
            tokenize_words(rows, slow, "words", None)
