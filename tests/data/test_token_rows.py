"""Rows of tokens that a model would fail on, found before anything is trained."""

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from hf_distill.data.token_rows import TokenLimits, check_token_rows, check_vocabulary, token_limits


def rows(*ids: list[int]) -> Dataset:
    return Dataset.from_dict({"input_ids": list(ids), "labels": [0] * len(ids)})


LIMITS = [TokenLimits("the student", 10, None), TokenLimits("the teacher", 8, 3)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (([1, 2], [], [3]), "row 1 of the training data has no tokens"),
        (([1], [1, 2, 3, 4]), "row 1 of the training data has 4 tokens, and the teacher takes at most 3"),
        (
            ([1], [2], [3, 9]),
            "row 2 of the training data has the token id 9, and the teacher has embeddings for 8 ",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(ids, message):
    """An error of the model after hours of steps; on a GPU an assert without a line."""
    with pytest.raises(ValueError, match=message):
        check_token_rows(rows(*ids), LIMITS, "training")
    check_token_rows(rows([1], [7, 7, 7]), LIMITS, "training")


def test_rows_are_named_by_their_place_in_a_selection():
    """The number of a row in a file that the user has never seen."""
    chosen = rows([1], [1] * 5, [2]).select([2, 1])
    with pytest.raises(ValueError, match="row 1 of the new data has 5 tokens"):
        check_token_rows(chosen, LIMITS, "new")


def test_what_has_no_tokens_in_columns_is_left_alone():
    """A refusal of data that nobody can look into."""
    check_token_rows([{"input_ids": [99]}], LIMITS, "training")
    check_token_rows(Dataset.from_dict({"pixel_values": [[0.0]]}), LIMITS, "training")
    check_token_rows(Dataset.from_dict({"input_ids": [[0.5]]}), LIMITS, "training")


def test_limits_are_those_of_the_tables_that_a_model_has():
    """Llama and T5 count no positions; refused, they would be of no use for long texts."""
    assert token_limits(tiny.bert(), "x") == TokenLimits("x", len(tiny.VOCABULARY), 32)
    with torch.device("meta"):
        gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=7, n_embd=8, n_layer=1, n_head=2, n_positions=5))
        t5 = T5ForSequenceClassification(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
        roberta_like = BertForSequenceClassification(BertConfig(vocab_size=4, hidden_size=8, num_attention_heads=2))
    assert token_limits(gpt2, "x")[1:] == (7, 5)
    assert token_limits(t5, "x")[1:] == (9, None)
    assert token_limits(roberta_like, "x")[1:] == (4, 512)


def test_tokens_without_an_embedding_are_refused_with_both_numbers():
    """`add_tokens` without `resize_token_embeddings`: an IndexError, on the first row that has one."""
    tokenizer = tiny.tokenizer()
    limits = token_limits(tiny.bert(), "student")
    check_vocabulary(tokenizer, limits, "")
    tokenizer.add_tokens(["<new>"])
    number = len(tiny.VOCABULARY)
    with pytest.raises(ValueError, match=rf"student: .* for {number} tokens, .* has {number + 1}: set {number + 1}"):
        check_vocabulary(tokenizer, limits, "set {number}")
