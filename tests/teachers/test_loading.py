import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertModel, DeiTConfig, DeiTForImageClassification, PreTrainedModel
from transformers.integrations import deepspeed
from transformers.modeling_outputs import SequenceClassifierOutput

import hf_distill
from hf_distill.teachers.loading import AUTO_CLASSES, forward_parameters, load_teacher, task_of
from hf_distill.teachers.source import logits_of

TEXT, TOKENS, IMAGES = "text-classification", "token-classification", "image-classification"


def saved(model: PreTrainedModel, folder: Path = Path("teacher")) -> str:
    model.save_pretrained(folder)
    return str(folder)


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


# ---- Loading ----


@pytest.mark.parametrize(
    ("task", "model"),
    [(TEXT, tiny.bert()), (TOKENS, tiny.bert_for_tokens()), (IMAGES, tiny.vit()), (IMAGES, tiny.resnet())],
)
def test_a_saved_teacher_comes_back_as_it_was(task: str, model: PreTrainedModel) -> None:
    """Weights under other names, left at random."""
    loaded = load_teacher(saved(model), task)
    assert type(loaded) is type(model)
    assert loaded.config.id2label == model.config.id2label
    state = loaded.state_dict()
    assert state
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_a_teacher_without_a_trained_head_is_refused_by_the_names_of_what_is_missing() -> None:
    """An encoder from the Hub whose head is random, taken for a classifier."""
    encoder = saved(BertModel(tiny.bert().config))
    with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight.*allow_untrained_teacher=True"):
        load_teacher(encoder, TEXT)


def test_many_missing_weights_are_not_all_listed() -> None:
    """An error of two hundred names for a checkpoint of another architecture."""
    encoder = saved(BertModel(tiny.bert().config, add_pooling_layer=False))
    model = load_teacher(encoder, TEXT, allow_untrained=True)
    assert isinstance(model, type(tiny.bert()))
    with pytest.raises(ValueError, match=r"lacks bert\.pooler\.dense\.bias, .*, classifier\.weight, so"):
        load_teacher(encoder, TEXT)


def test_an_untrained_teacher_is_loaded_when_that_is_allowed() -> None:
    """A study of random teachers that cannot be made."""
    encoder = BertModel(tiny.bert().config)
    model: Any = load_teacher(saved(encoder), TEXT, allow_untrained=True)
    assert torch.equal(model.bert.pooler.dense.weight, encoder.pooler.dense.weight)


@pytest.mark.parametrize("name", ["no/such-model", "./no_such_folder", "empty"])
def test_a_teacher_that_does_not_exist_is_refused_in_one_line(name: str) -> None:
    """A page of traceback for a misspelt name."""
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=f"cannot load the teacher '{name}' for {TEXT}: .") as error:
        load_teacher(name, TEXT)
    assert "\n" not in str(error.value)


def test_more_keywords_of_from_pretrained_are_passed_on() -> None:
    """A device map that is computed and then not used."""
    loaded: Any = load_teacher(saved(tiny.bert()), TEXT, device_map={"": "meta"}, attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"
    assert next(loaded.parameters()).is_meta


@pytest.mark.parametrize("name", ["teacher", "nowhere"])
def test_a_teacher_is_loaded_whole_in_a_run_that_shards_its_student(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher split by ZeRO-3, of which each process then runs empty weights; a student that is no longer split."""

    class OfRun:
        def is_zero3(self) -> bool:
            return True

    of_run = OfRun()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    saved(tiny.bert())
    deepspeed.set_hf_deepspeed_config(of_run)
    if name == "teacher":  # under ZeRO-3, from_pretrained would import deepspeed
        assert torch.equal(load_teacher(name, TEXT).classifier.weight, tiny.bert().classifier.weight)
    else:
        with pytest.raises(ValueError, match="cannot load the teacher"):
            load_teacher(name, TEXT)
    assert deepspeed.is_deepspeed_zero3_enabled()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_a_teacher_of_another_task_is_refused_in_one_line() -> None:
    """A list of every configuration that Transformers knows."""
    with pytest.raises(ValueError, match=f"for {IMAGES}: Unrecognized configuration class") as error:
        load_teacher(saved(tiny.bert()), IMAGES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.float32), ("auto", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_a_half_precision_checkpoint_loads_in_single_precision_unless_another_is_asked_for(
    dtype: str | None, expected: torch.dtype
) -> None:
    """Soft targets rounded to three digits because a checkpoint was saved small."""
    assert dtypes(load_teacher(saved(tiny.bert().half()), TEXT, dtype=dtype)) == {expected}


# ---- The task of a model ----


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (TEXT, tiny.bert()),
        (TEXT, tiny.distilbert()),
        (TOKENS, tiny.bert_for_tokens()),
        (IMAGES, tiny.vit()),
        (IMAGES, tiny.resnet()),
        (IMAGES, tiny.convnext()),
        (IMAGES, hf_distill.MLPForImageClassification(hf_distill.MLPConfig(hidden_sizes=[4]))),
        # one of two classes that belong to one config
        (IMAGES, DeiTForImageClassification(DeiTConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1))),
        (TEXT, get_peft_model(tiny.bert(), LoraConfig(target_modules=["query"]))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_the_task_is_that_of_the_auto_class(task: str, model: nn.Module) -> None:
    """A teacher given by name that is loaded with the head of another task."""
    assert task in AUTO_CLASSES
    assert task_of(model) == task


@pytest.mark.parametrize("model", [BertModel(tiny.bert().config), nn.Linear(2, 2)])
def test_a_model_that_is_no_classifier_has_no_task(model: nn.Module) -> None:
    """An encoder taken for the first task in the list."""
    with pytest.raises(ValueError, match=f"{type(model).__name__} is no classifier.*pass the teacher as a model"):
        task_of(model)


# ---- Inputs and outputs ----


def test_forward_parameters_are_the_named_inputs_without_labels() -> None:
    """`kwargs` taken for an input of that name."""
    assert "token_type_ids" in forward_parameters(tiny.bert())
    assert "token_type_ids" not in forward_parameters(tiny.distilbert())
    assert "pixel_values" in forward_parameters(tiny.vit())
    for model in (tiny.bert(), tiny.distilbert(), tiny.vit()):
        assert not forward_parameters(model) & {"self", "labels", "kwargs", "args"}


def test_logits_are_found_in_every_form_of_output() -> None:
    """The loss, which comes first in an output that has one."""
    loss, logits = torch.zeros(()), torch.ones(2, 3)
    assert logits_of(SequenceClassifierOutput(loss=loss, logits=logits)) is logits
    assert logits_of({"loss": loss, "logits": logits}) is logits
    assert logits_of((logits, torch.zeros(2))) is logits
