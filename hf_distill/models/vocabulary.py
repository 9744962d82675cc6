"""A smaller vocabulary: the pieces that given texts use, and those that every other word falls back to."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


class Vocabulary(NamedTuple):
    """A tokenizer with fewer pieces.

    Attributes:
        tokenizer: numbers its pieces anew, in their former order.
        kept: the former id of each piece.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: list[int]


def prune_vocabulary(
    tokenizer: PreTrainedTokenizerBase, token_counts: dict[int, int], min_count: int = 1
) -> Vocabulary:
    """Make a tokenizer that knows only the pieces that occur, all single characters and the special tokens.

    Texts of which all pieces are kept are split as before. Another piece is split into smaller ones, and never becomes
    the unknown token, because each of its characters has one.

    Args:
        tokenizer: a fast one, of WordPiece, BPE or Unigram.
        token_counts: how often each token id occurs in the texts that decide.
        min_count: keep pieces that occur so often.

    Raises:
        ValueError: the tokenizer is slow, or of another kind.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"vocabulary: needs a fast tokenizer, {type(tokenizer).__name__} is none: leave it out")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = state["model"], {token["id"]: token["content"] for token in state["added_tokens"]}
    if model["type"] not in ("WordPiece", "BPE", "Unigram"):
        raise ValueError(
            f"vocabulary: tokenizers of WordPiece, BPE and Unigram can be pruned, this one is {model['type']}: leave "
            "it out"
        )
    pieces = _pieces(model) | added
    prefix = model.get("continuing_subword_prefix") or ""
    kept = {place for place, count in token_counts.items() if count >= min_count and place in pieces} | set(added)
    kept |= {place for place, piece in pieces.items() if _is_basic(piece, prefix)}
    if model.get("unk_token") is not None:
        kept |= {place for place, piece in pieces.items() if piece == model["unk_token"]}
    if model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    if model["type"] == "BPE":
        kept = _with_parts(model, kept)
    ordered = sorted(kept)
    new_id = {old: new for new, old in enumerate(ordered)}
    _renumber(state, new_id)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):
            (Path(folder) / name).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        settings_file = Path(folder) / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        decoder = settings.get("added_tokens_decoder")
        if decoder is not None:
            settings["added_tokens_decoder"] = {str(new_id[int(old)]): value for old, value in decoder.items()}
        settings_file.write_text(json.dumps(settings), encoding="utf-8")
        return Vocabulary(AutoTokenizer.from_pretrained(folder), ordered)


def prune_embeddings(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep the embeddings of some tokens, in place, and number the special tokens of the model's config anew.

    Raises:
        ValueError: the model has no table of embeddings.
    """
    old = model.get_input_embeddings()
    if not isinstance(old, nn.Embedding):
        raise ValueError(f"vocabulary: {type(model).__name__} has no table of token embeddings: leave it out")
    new_id = {old_id: new for new, old_id in enumerate(kept)}
    padding = None if old.padding_idx is None else new_id.get(old.padding_idx)
    new = nn.Embedding(
        len(kept), old.embedding_dim, padding_idx=padding, device=old.weight.device, dtype=old.weight.dtype
    )
    with torch.no_grad():
        new.weight.copy_(old.weight[torch.tensor(kept, device=old.weight.device)])
    model.set_input_embeddings(new)
    config = model.config.get_text_config()
    config.vocab_size = len(kept)
    for name, value in vars(config).items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new_id.get(value))


def count_tokens(token_ids: Iterable[Sequence[int]]) -> dict[int, int]:
    """Count how often each token occurs in rows of them."""
    counts: dict[int, int] = {}
    for row in token_ids:
        for token in row:
            counts[token] = counts.get(token, 0) + 1
    return counts


def coverage(kept: Sequence[int], token_counts: dict[int, int]) -> float:
    """Return the share of the tokens of some texts that are kept; the others are split into smaller ones."""
    present = set(kept)
    return sum(n for token, n in token_counts.items() if token in present) / max(sum(token_counts.values()), 1)


def _pieces(model: dict[str, Any]) -> dict[int, str]:
    if model["type"] == "Unigram":
        return {place: piece for place, (piece, _) in enumerate(model["vocab"])}
    return {place: piece for piece, place in model["vocab"].items()}


def _is_basic(piece: str, prefix: str) -> bool:
    """Tell whether a piece is one character, or a byte that other characters fall back to."""
    bare = piece.removeprefix(prefix) if prefix else piece
    return len(bare) == 1 or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))


def _with_parts(model: dict[str, Any], kept: set[int]) -> set[int]:
    """Add the pieces that kept ones are merged from; a piece is merged after its parts."""
    ids, found = model["vocab"], set(kept)
    for first, second in reversed([_pair(merge) for merge in model["merges"]]):
        if ids[first + second.removeprefix(model.get("continuing_subword_prefix") or "")] in found:
            found |= {ids[first], ids[second]}
    return found


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _renumber(state: dict[str, Any], new_id: dict[int, int]) -> None:
    """Take out of a tokenizer's state what is not kept, and number the rest anew."""
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for place, entry in enumerate(model["vocab"]) if place in new_id]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_id[place] for piece, place in model["vocab"].items() if place in new_id}
    if model["type"] == "BPE":
        prefix, vocab = model.get("continuing_subword_prefix") or "", model["vocab"].keys()
        merges = [(merge, *_pair(merge)) for merge in model["merges"]]
        model["merges"] = [
            merge for merge, a, b in merges if a in vocab and b in vocab and a + b.removeprefix(prefix) in vocab
        ]
    for token in state["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber_processor(state.get("post_processor"), new_id)
    if state.get("padding"):
        state["padding"]["pad_id"] = new_id[state["padding"]["pad_id"]]


def _renumber_processor(processor: Any, new_id: dict[int, int]) -> None:
    if processor is None:
        return
    for each in processor.get("processors", []):
        _renumber_processor(each, new_id)
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new_id[processor[name][1]]
    special = processor.get("special_tokens")
    if isinstance(special, dict):
        for token in special.values():
            token["ids"] = [new_id[place] for place in token["ids"]]
