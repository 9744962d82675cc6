from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
    DebertaV2Config,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ElectraConfig,
    LongformerConfig,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
    SwinConfig,
)

from hf_distill.models.students import model_from_checkpoint, model_from_config, student_from_teacher

TEXT, TOKENS, IMAGES = "text-classification", "token-classification", "image-classification"
NAMES = ["red", "green", "blue"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
TEXT_SHAPE = {"vocab_size": len(tiny.VOCABULARY), "max_position_embeddings": 40, "pad_token_id": 0, **SHAPE}


def text_model(config_class: type, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = config_class(**{**TEXT_SHAPE, **tiny.labels(), **settings})
    return AutoModelForSequenceClassification.from_config(config)


def modernbert() -> PreTrainedModel:
    tokens = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    return text_model(ModernBertConfig, local_attention=4, **tokens)


def deit() -> PreTrainedModel:
    torch.manual_seed(0)
    return DeiTForImageClassification(DeiTConfig(image_size=8, patch_size=4, **SHAPE, **tiny.labels()))


def dinov2() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
    return Dinov2ForImageClassification(Dinov2Config(image_size=8, patch_size=4, **shape, **tiny.labels()))


TEACHERS = {  # with the name of their stack of layers
    "bert": (lambda: tiny.bert(num_layers=4), "bert.encoder.layer"),
    "distilbert": (lambda: tiny.distilbert(num_layers=4), "distilbert.transformer.layer"),
    "vit": (lambda: tiny.vit(num_layers=4), "vit.layers"),
    "roberta": (lambda: text_model(RobertaConfig), "roberta.encoder.layer"),
    "electra": (lambda: text_model(ElectraConfig, embedding_size=8), "electra.encoder.layer"),
    "deberta-v2": (lambda: text_model(DebertaV2Config), "deberta.encoder.layer"),
    "longformer": (
        lambda: text_model(LongformerConfig, attention_window=[4, 4, 8, 8]),
        "longformer.encoder.layer",
    ),
    "modernbert": (modernbert, "model.layers"),
    "deit": (deit, "deit.layers"),
    "dinov2": (dinov2, "dinov2.encoder.layer"),
}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, **tiny.labels()}
each_family = pytest.mark.parametrize(("make", "stack"), TEACHERS.values(), ids=TEACHERS.keys())


def logits(model: PreTrainedModel) -> Tensor:
    inputs: dict[str, Tensor]
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    else:
        rows = tiny.text_rows(3)
        inputs = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def storages(model: PreTrainedModel) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}


# ---- From a teacher's layers ----


@each_family
@pytest.mark.parametrize("layers", [[0, 2], [0, 3, 1]], ids=str)
def test_named_layers_are_copied_in_order_and_everything_else_too(make: Any, stack: str, layers: Sequence[int]) -> None:
    """The first layers in the place of the named ones, or a head that starts at random."""
    teacher = make()
    student = student_from_teacher(teacher, layers)
    state, of_teacher = student.state_dict(), teacher.state_dict()
    inside = {name for name in state if name.startswith(f"{stack}.")}
    assert inside
    assert set(state) - inside == {name for name in of_teacher if not name.startswith(f"{stack}.")}
    for name, weight in state.items():
        source = name
        if name in inside:
            place, rest = name.removeprefix(f"{stack}.").split(".", 1)
            source = f"{stack}.{layers[int(place)]}.{rest}"
        assert torch.equal(weight, of_teacher[source]), name
    assert {int(name.removeprefix(f"{stack}.").split(".")[0]) for name in inside} == set(range(len(layers)))


@each_family
def test_all_layers_give_the_teachers_logits(make: Any, stack: str) -> None:
    """A weight or a setting that is not copied."""
    teacher = make()
    assert torch.equal(logits(student_from_teacher(teacher, [0, 1, 2, 3])), logits(teacher))


@each_family
def test_a_student_of_some_layers_computes_what_the_teacher_does_without_the_others(make: Any, stack: str) -> None:
    """A layer that attends over another window in its new place."""
    teacher = make()
    student = student_from_teacher(teacher, [0, 3])
    kept = teacher.get_submodule(stack)
    del kept[2], kept[1]
    if "longformer" in stack:  # its layers look their window up by place
        for place, layer in enumerate(kept):
            layer.attention.self.layer_id = place
        teacher.config.attention_window = [4, 8]
    torch.testing.assert_close(logits(student), logits(teacher))


@each_family
def test_a_student_comes_back_as_it_was_saved(make: Any, stack: str) -> None:
    """A config that says what the weights do not: the student trains, and cannot be loaded."""
    student = student_from_teacher(make(), [0, 2])
    student.save_pretrained("student")
    assert torch.equal(logits(type(student).from_pretrained("student")), logits(student))


@each_family
def test_no_memory_is_shared_with_the_teacher(make: Any, stack: str) -> None:
    """A student that trains its teacher."""
    teacher = make()
    student = student_from_teacher(teacher, [0, 2])
    assert not storages(student) & storages(teacher)


def test_labels_are_the_teachers() -> None:
    """Labels called LABEL_0, which no longer say what the logits are."""
    student = student_from_teacher(tiny.bert(problem_type="multi_label_classification"), [0])
    assert student.config.id2label == dict(enumerate(NAMES))
    assert student.config.problem_type == "multi_label_classification"
    assert student.config.num_hidden_layers == 1


def test_the_teacher_stays_as_it_was() -> None:
    """A teacher whose config says it has fewer layers than it has."""
    teacher = modernbert()
    settings, weights = teacher.config.to_dict(), {name: w.clone() for name, w in teacher.state_dict().items()}
    student_from_teacher(teacher, [0, 2])
    assert teacher.config.to_dict() == settings
    assert all(torch.equal(weight, weights[name]) for name, weight in teacher.state_dict().items())


def test_a_student_of_a_half_precision_teacher_is_in_single_precision() -> None:
    """Updates of the optimizer lost to rounding."""
    student = student_from_teacher(tiny.bert().half(), [1])
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert student.config.dtype == torch.float32


def test_a_student_of_a_frozen_teacher_can_be_trained() -> None:
    """Parameters that stay as they are because the teacher's did."""
    teacher = tiny.bert()
    teacher.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in student_from_teacher(teacher, [0]).parameters())


@pytest.mark.parametrize("layers", [[], [4], [-1], [0, 0], [0, 1, 2, 3, 4]], ids=str)
def test_layers_that_the_teacher_does_not_have_are_refused(layers: list[int]) -> None:
    """-1 taken for the last layer, or a layer twice."""
    with pytest.raises(ValueError, match=r"some of the teacher's layers 0 to 3, each once; got \["):
        student_from_teacher(tiny.bert(num_layers=4), layers)


@pytest.mark.parametrize(
    "make",
    [tiny.resnet, tiny.convnext, lambda: text_model(AlbertConfig, embedding_size=8)],
    ids=["resnet", "convnext", "albert"],
)
def test_a_teacher_without_one_stack_of_layers_is_refused(make: Any) -> None:
    """Run of different widths, or one layer used four times, taken for a stack."""
    with pytest.raises(ValueError, match=r"one stack of layers.* has \d: use model: or config: for the student"):
        student_from_teacher(make(), [0])


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (modernbert, [1, 2]),  # its first layer has no norm before attention
        (lambda: text_model(AlbertConfig, embedding_size=8, num_hidden_groups=4), [0, 2]),
        (
            lambda: AutoModelForImageClassification.from_config(
                SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2)
            ),
            [0],
        ),
    ],
    ids=["modernbert", "albert", "swin"],
)
def test_layers_that_cannot_stand_in_each_others_place_are_refused(make: Any, layers: list[int]) -> None:
    """A page of names of weights for a choice of layers."""
    with pytest.raises(ValueError, match=r"do not make a model.*use model: or config: for the student") as error:
        student_from_teacher(make(), layers)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# ---- From a checkpoint ----


def saved(model: PreTrainedModel) -> str:
    model.save_pretrained("checkpoint")
    return "checkpoint"


@pytest.mark.parametrize(
    ("task", "model"),
    [(TEXT, tiny.bert()), (TOKENS, tiny.bert_for_tokens()), (IMAGES, tiny.vit()), (IMAGES, tiny.resnet())],
)
def test_a_checkpoint_with_the_right_head_comes_back_whole(task: str, model: PreTrainedModel) -> None:
    """A trained head drawn anew."""
    loaded = model_from_checkpoint(saved(model), task, NAMES)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))


def test_labels_are_those_of_the_data() -> None:
    """A model that is published with the labels of what it was before."""
    config = model_from_checkpoint(saved(tiny.bert()), TEXT, ["x", "y", "z"]).config
    assert config.id2label == {0: "x", 1: "y", 2: "z"}
    assert config.label2id == {"x": 0, "y": 1, "z": 2}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (TEXT, tiny.bert(1)),
        (TEXT, text_model(RobertaConfig)),
        (TOKENS, tiny.bert_for_tokens(1)),
        (IMAGES, tiny.vit(1)),
        (IMAGES, tiny.resnet(1)),
        (IMAGES, AutoModelForImageClassification.from_config(SwinConfig(image_size=8, patch_size=2, **SWIN))),
    ],
    ids=["bert", "roberta", "tokens", "vit", "resnet", "swin"],
)
def test_a_head_for_the_same_labels_in_another_order_is_put_into_theirs(task: str, model: PreTrainedModel) -> None:
    """A trained head that says "green" where it has learnt "red", because its classes were renamed."""
    torch.nn.init.normal_(next(p for name, p in model.named_parameters() if name.endswith("bias") and len(p) == 3))
    loaded = model_from_checkpoint(saved(model), task, ["blue", "Red", "green"])
    assert loaded.config.id2label == {0: "blue", 1: "Red", 2: "green"}
    assert torch.equal(logits(loaded), logits(model)[..., [2, 0, 1]])
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_an_encoder_gets_a_head_for_the_labels() -> None:
    """Two logits, the default, for any number of labels."""
    encoder = BertModel(tiny.bert().config)
    model = model_from_checkpoint(saved(encoder), TEXT, ["x", "y", "z", "u", "v"])
    assert logits(model).shape[-1] == 5
    assert torch.equal(model.bert.pooler.dense.weight, encoder.pooler.dense.weight)


def test_a_head_for_another_number_of_labels_is_refused() -> None:
    """A trained head replaced by chance, and nothing said."""
    with pytest.raises(
        ValueError, match=r"classifier\.bias, classifier\.weight differ.*data have 2: set new_head: true"
    ):
        model_from_checkpoint(saved(tiny.bert()), TEXT, ["x", "y"])


def test_a_new_head_is_drawn_when_asked_for() -> None:
    """A body that is drawn anew with its head."""
    trained = tiny.bert()
    model = model_from_checkpoint(saved(trained), TEXT, ["x", "y"], new_head=True)
    assert logits(model).shape[-1] == 2
    assert torch.equal(model.bert.pooler.dense.weight, trained.bert.pooler.dense.weight)
    assert model.classifier.weight.isfinite().all()


def test_a_half_precision_checkpoint_is_trained_in_single_precision() -> None:
    """Updates of the optimizer lost to rounding."""
    model = model_from_checkpoint(saved(tiny.bert().half()), TEXT, NAMES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "task"), [("no/such-model", TEXT), ("empty", TEXT), ("checkpoint", IMAGES)])
def test_a_checkpoint_that_cannot_be_loaded_is_refused_in_one_line(name: str, task: str) -> None:
    """A page of traceback for a misspelt name, or a list of every model there is."""
    saved(tiny.bert())
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=f"cannot load the model '{name}' for {task}: .") as error:
        model_from_checkpoint(name, task, NAMES)
    assert "\n" not in str(error.value)


# ---- From a config ----


@pytest.mark.parametrize(
    ("settings", "task", "auto_class"),
    [
        ({"model_type": "bert", **TEXT_SHAPE}, TEXT, AutoModelForSequenceClassification),
        (
            {"model_type": "distilbert", "vocab_size": 27, "dim": 16, "n_heads": 2, "hidden_dim": 8},
            TEXT,
            AutoModelForSequenceClassification,
        ),
        ({"model_type": "bert", **TEXT_SHAPE}, TOKENS, AutoModelForTokenClassification),
        ({"model_type": "vit", "image_size": 8, "patch_size": 4, **SHAPE}, IMAGES, AutoModelForImageClassification),
        ({"model_type": "deit", "image_size": 8, "patch_size": 4, **SHAPE}, IMAGES, AutoModelForImageClassification),
        ({"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 3}, IMAGES, AutoModelForImageClassification),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_a_model_is_built_from_its_type_and_fields(settings: dict[str, Any], task: str, auto_class: Any) -> None:
    """A field that is read and not used: the model has its type's default size."""
    model = model_from_config(settings, task, NAMES)
    assert type(model) is type(auto_class.from_config(model.config))
    assert {name: getattr(model.config, name) for name in settings} == settings
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert logits(model).shape[-1] == 3


def test_the_same_seed_gives_the_same_weights() -> None:
    """A run that cannot be repeated."""
    settings = {"model_type": "bert", **TEXT_SHAPE}
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(model_from_config(settings, TEXT, NAMES))
    first, again, other = (logits(model) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_settings_stay_as_they_were() -> None:
    """A recipe that loses its model_type when its model is built."""
    settings = {"model_type": "hf_distill_mlp", "hidden_sizes": [4]}
    model_from_config(settings, IMAGES, NAMES)
    assert settings == {"model_type": "hf_distill_mlp", "hidden_sizes": [4]}


@pytest.mark.parametrize(
    ("settings", "task", "complaint"),
    [
        ({"hidden_size": 8}, TEXT, r"config needs a model_type, such as bert.*got \['hidden_size'\]"),
        ({"model_type": "brt"}, TEXT, "config.model_type 'brt' is not one that Transformers knows"),
        ({"model_type": "bert", "num_layers": 2, "width": 1}, TEXT, "'bert' has no field num_layers, width"),
        ({"model_type": "resnet"}, TEXT, f"'resnet' cannot be built for {TEXT} from its defaults: Unrecognized"),
        ({"model_type": "bert", "hidden_size": "8"}, TEXT, r"cannot be built .*'hidden_size' expected int, got str"),
        ({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, TEXT, "not a multiple"),
        ({"model_type": "bert", "hidden_size": -12}, TEXT, r"built .* from {'hidden_size': -12}: .*negative"),
        ({"model_type": "bert", "num_attention_heads": 0}, TEXT, r"'bert' cannot be built .*zero"),
    ],
)
def test_a_config_that_makes_no_model_is_refused_in_one_line(
    settings: dict[str, Any], task: str, complaint: str
) -> None:
    """A misspelt field that is ignored, or a page of traceback for a wrong value."""
    with pytest.raises(ValueError, match=complaint) as error:
        model_from_config(settings, task, NAMES)
    assert "\n" not in str(error.value)
