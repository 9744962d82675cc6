from pathlib import Path

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


TEXTS = ["the film is good and the plot is great", "a dull film with a poor plot", "funny and sad and long"]


def trained(kind: str) -> PreTrainedTokenizerFast:
    """Train a small tokenizer of a kind on the texts."""
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    names = list(special.values())
    if kind == "Unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=names, unk_token="<unk>")
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend = Tokenizer(models.BPE(unk_token=None if kind == "byte-level BPE" else "<unk>"))
        is_bytes = kind == "byte-level BPE"
        alphabet = pre_tokenizers.ByteLevel.alphabet() if is_bytes else []
        trainer = trainers.BpeTrainer(
            vocab_size=330 if is_bytes else 60, special_tokens=names, initial_alphabet=alphabet
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel() if is_bytes else pre_tokenizers.Whitespace()
    backend.train_from_iterator(TEXTS, trainer)
    ends = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("kind", ["BPE", "byte-level BPE", "Unigram"])
def test_other_kinds_split_the_deciding_texts_as_before(kind: str, tmp_path: Path) -> None:
    """Merges of pieces that are gone; numbers that a template or a config still has from before."""
    whole = trained(kind)
    small, kept = prune_vocabulary(whole, count_tokens(whole(TEXTS[2:])["input_ids"]))
    assert len(kept) < len(whole)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (small, again):
        assert tokenizer.tokenize(TEXTS[2]) == whole.tokenize(TEXTS[2])
        assert [kept[token] for token in tokenizer(TEXTS[2])["input_ids"]] == whole(TEXTS[2])["input_ids"]
        assert "<unk>" not in tokenizer.tokenize(TEXTS[1])
        assert tokenizer.convert_tokens_to_ids("<pad>") == tokenizer.pad_token_id
