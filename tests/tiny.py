"""Small real models of several families, a tokenizer and rows for tests."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = [
    "the",
    "a",
    "film",
    "plot",
    "is",
    "was",
    "very",
    "not",
    "good",
    "bad",
    "dull",
    "great",
    "fine",
    "poor",
    "and",
    "but",
    "funny",
    "sad",
    "long",
    "short",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##ly", "##er"]
IMAGE_SIZE = 8

# For trainings whose weights are compared up to rounding: Adam moves a parameter whose gradient is nothing but rounding
# (a key's bias, which shifts all scores of a query alike) by whole steps, to another place on each processor.
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}


def labels(num_labels: int = 3) -> dict[str, Any]:
    names = ["red", "green", "blue", "black", "white"][:num_labels]
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _text_shape(hidden_size: int, num_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": 32,
    }


def bert(
    seed: int = 0, *, dropout: float = 0.0, num_layers: int = 2, hidden_size: int = 16, **config: Any
) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {**labels(), **_text_shape(hidden_size, num_layers), **config}
    return BertForSequenceClassification(
        BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **settings)
    )


def bert_for_tokens(seed: int = 0, *, dropout: float = 0.0, **config: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {**labels(), **_text_shape(16, 2), **config}
    return BertForTokenClassification(
        BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **settings)
    )


def distilbert(seed: int = 0, *, dropout: float = 0.0, num_layers: int = 2, **config: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(VOCABULARY),
            dim=16,
            hidden_dim=32,
            n_layers=num_layers,
            n_heads=2,
            max_position_embeddings=32,
            dropout=dropout,
            attention_dropout=dropout,
            seq_classif_dropout=dropout,
            **{**labels(), **config},
        )
    )


def vit(seed: int = 0, *, dropout: float = 0.0, num_layers: int = 2, **config: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            image_size=IMAGE_SIZE,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            intermediate_size=32,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **{**labels(), **config},
        )
    )


def resnet(seed: int = 0, **config: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**{**labels(), **settings, **config}))


def convnext(seed: int = 0, **config: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = {"image_size": IMAGE_SIZE, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ConvNextForImageClassification(ConvNextConfig(**{**labels(), **settings, **config}))


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def text_rows(count: int, kind: str = "single", *, seed: int = 1, num_labels: int = 3) -> list[dict[str, Any]]:
    """Rows of six tokens, of which the last two of every third row are padding.

    `kind` is single (every third label missing), multi, regression, token, or none (no label column).
    """
    random = torch.Generator().manual_seed(seed)
    rows = []
    for place in range(count):
        mask = torch.ones(6, dtype=torch.long)
        if place % 3 == 2:
            mask[4:] = 0
        row = {
            "input_ids": torch.randint(5, len(VOCABULARY), (6,), generator=random) * mask,
            "attention_mask": mask,
        }
        if kind == "token":
            row["labels"] = torch.randint(0, num_labels, (6,), generator=random)
            row["labels"][torch.rand(6, generator=random) < 0.4] = -100
            row["labels"] = row["labels"].masked_fill(mask == 0, -100)
        else:
            row |= _label(kind, place, num_labels, random)
        rows.append(row)
    return rows


def image_rows(count: int, kind: str = "single", *, seed: int = 1, num_labels: int = 3) -> list[dict[str, Any]]:
    """Rows of random images; `kind` as for `text_rows`, tokens excepted."""
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "pixel_values": torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=random),
            **_label(kind, place, num_labels, random),
        }
        for place in range(count)
    ]


def _label(kind: str, place: int, num_labels: int, random: torch.Generator) -> dict[str, Any]:
    if kind == "single":
        return {"labels": torch.tensor(-100) if place % 3 == 1 else torch.randint(0, num_labels, (), generator=random)}
    if kind == "multi":
        values = torch.randint(0, 2, (num_labels,), generator=random).float()
        values[torch.rand(num_labels, generator=random) < 0.2] = -100.0
        return {"labels": values}
    if kind == "regression":
        return {"labels": torch.randn(num_labels, generator=random)}
    assert kind == "none", kind
    return {}
