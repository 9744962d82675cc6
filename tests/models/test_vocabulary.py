from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoTokenizer

from hf_distill.models.students import chosen_layers
from hf_distill.models.vocabulary import count_tokens, coverage, prune_embeddings, prune_vocabulary


def wordpiece(folder: Path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "film", "##s", "##ing", *"abcdefgilmnos", "act"]
    pieces += [f"##{letter}" for letter in "abcdefgilmno"]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def test_texts_that_decide_are_split_as_before_and_others_into_characters(tmp_path: Path) -> None:
    """A piece left out becomes the unknown token, or ids and embeddings are numbered apart."""
    whole = wordpiece(tmp_path)
    counts = count_tokens(whole(["good films", "act"])["input_ids"])
    small, kept = prune_vocabulary(whole, counts)
    for text in ("good films", "act", "filming", "a"):
        tokens = small.tokenize(text)
        assert "[UNK]" not in tokens
        if text != "filming":
            assert tokens == whole.tokenize(text)
            assert [kept[token] for token in small(text)["input_ids"]] == whole(text)["input_ids"]
    assert small.tokenize("filming") == ["film", "##i", "##n", "##g"]
    assert coverage(kept, count_tokens(whole(["filming"])["input_ids"])) == pytest.approx(3 / 4)


def test_a_pruned_model_gives_the_same_logits(tmp_path: Path) -> None:
    whole = wordpiece(tmp_path)
    model = tiny.bert(vocab_size=len(whole)).eval()
    rows = whole(["good films", "act"], padding=True, return_tensors="pt")
    expected = model(**rows).logits
    small, kept = prune_vocabulary(whole, count_tokens(rows["input_ids"].tolist()))
    prune_embeddings(model, kept)
    small.save_pretrained(tmp_path / "small")
    model.save_pretrained(tmp_path / "small")
    again = AutoTokenizer.from_pretrained(tmp_path / "small")
    loaded = type(model).from_pretrained(tmp_path / "small").eval()
    found = loaded(**again(["good films", "act"], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected)
    assert loaded.config.vocab_size == len(kept) < len(whole)


@pytest.mark.parametrize(
    ("strategy", "layers"), [("uniform", [0, 2, 3, 5]), ("first", [0, 1, 2, 3]), ("last", [2, 3, 4, 5])]
)
def test_strategies_choose_layers(strategy: str, layers: list[int]) -> None:
    assert chosen_layers(6, 4, strategy) == layers
