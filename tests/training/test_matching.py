"""Matching in a training: which layers, which models, what is learned and kept, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    TrainerCallback,
    default_data_collator,
)

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.models.internals import ATTENTION_FAMILIES, attention_points, layers_of, pooled_point
from hf_distill.models.vocabulary import count_tokens, prune_embeddings, prune_vocabulary
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill
from hf_distill.training.matching import PROJECTIONS_FILE, Matching, layer_pairs, token_ids

OF_IMAGES = ("vit", "deit", "dinov2", "beit", "resnet", "convnext", "swin")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
OTHER_SHAPE: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
    "electra": {"embedding_size": 16, **SHAPE},
    "modernbert": {**SHAPE, "global_attn_every_n_layers": 2, "pad_token_id": 0},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "num_stages": 3, "patch_size": 2},
    "swin": {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 2], "window_size": 2, "patch_size": 2},
}


def model_of(kind: str, seed: int = 0, **other: Any) -> Any:
    torch.manual_seed(seed)
    shape = {**OTHER_SHAPE.get(kind, SHAPE), **tiny.labels(), "architectures": [], **other}
    if kind in OF_IMAGES:
        shape = {"patch_size": 4, "image_size": 16, **shape}
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **shape)).eval()
    shape = {"vocab_size": 40, "max_position_embeddings": 64, **shape}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **shape)).eval()


def inputs_of(kind: str, num_padding: int = 2) -> dict[str, Any]:
    random = torch.Generator().manual_seed(3)
    if kind in OF_IMAGES:
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=random)}
    ids, mask = torch.randint(5, 40, (4, 6 + num_padding), generator=random), torch.ones(4, 6 + num_padding).long()
    ids[:, 6:], mask[:, 6:] = 1 if kind in ("roberta", "xlm-roberta", "camembert") else 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def settings(folder: Any = "unused", **chosen: Any) -> DistillationConfig:
    base: dict[str, Any] = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    return DistillationConfig(str(folder), **{**base, "allow_untrained_teacher": True, **chosen})


def values(student: Any, teacher: Any, kind: str, **chosen: Any) -> dict[str, torch.Tensor]:
    matching, batch = Matching(settings(**chosen), student, teacher), inputs_of(kind)
    matching.attach()
    with torch.no_grad(), matching.recording(is_training=True) as of_batch:
        student(**batch)
        teacher(**batch)
        found = of_batch(batch, None)
    matching.detach()
    return found


@pytest.mark.parametrize("kind", ATTENTION_FAMILIES)
def test_relations_read_queries_keys_and_values_of_each_family(kind: str) -> None:
    """A family whose projections have other names, come in another order or in one matrix: other relations."""
    student, teacher = model_of(kind), model_of(kind)
    assert values(student, teacher, kind, relation_weight=1.0)["relation"].abs().max() < 1e-6
    points = attention_points(student, 2)
    for name, point in points.items():
        weight: Any = point.module.weight
        for part in weight.chunk(3) if name == "Wqkv" else [weight]:
            before = part.detach().clone()
            with torch.no_grad():
                part.mul_(3)
            assert values(student, teacher, kind, relation_weight=1.0)["relation"].min() > 1e-9, name
            with torch.no_grad():
                part.copy_(before)
    ours = attention_points(model_of(kind, num_attention_heads=4), 0) if kind != "distilbert" else points
    assert len(ours) == len(points)  # other heads, the same places


def test_relations_of_unlike_families_compare_like_with_like() -> None:
    """Queries compared with keys, because one family computes its keys first."""
    student, teacher = model_of("distilbert"), model_of("bert")
    names = [[*attention_points(model, 0)] for model in (student, teacher)]
    assert [[name[0] for name in each] for each in names] == [["q", "k", "v"], ["q", "k", "v"]]
    assert values(student, teacher, "bert", relation_weight=1.0)["relation"].min() > 0


@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_padding_counts_nothing(kind: str) -> None:
    """Rows whose value depends on the longest row beside them."""
    student, teacher = model_of(kind, 1), model_of(kind, 2)
    matching = Matching(settings(relation_weight=1.0, hidden_weight=1.0), student, teacher)
    matching.attach()
    found = []
    for count in (0, 5):
        batch = inputs_of(kind, count)
        batch["input_ids"][:, :6] = inputs_of(kind, 0)["input_ids"]
        with torch.no_grad(), matching.recording(is_training=True) as of_batch:
            student(**batch)
            teacher(**batch)
            found.append(of_batch(batch, None))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*ATTENTION_FAMILIES, "resnet", "convnext", "swin"])
def test_pooled_features_are_what_the_last_layer_reads(kind: str) -> None:
    """Features of another place, or with dropout, of another width than the projection is made for."""
    model = model_of(kind)
    point, width = pooled_point(model)
    seen: list[torch.Tensor] = []
    handle = point.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(**inputs_of(kind))
    handle.remove()
    assert seen[-1].flatten(1).shape == (4, width)


@pytest.mark.parametrize("kind", ["resnet", "convnext", "swin", "vit", "electra"])
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_hidden_states_of_unlike_widths_are_projected(kind: str, loss: str) -> None:
    """Stages have widths of their own, and their maps their channels first."""
    wider: dict[str, Any] = {
        "resnet": {"hidden_sizes": [12, 16, 20]},
        "convnext": {"hidden_sizes": [12, 16, 20]},
        "swin": {"embed_dim": 16},
        "electra": {"hidden_size": 32},
        "vit": {"hidden_size": 32},
    }
    student, teacher = model_of(kind), model_of(kind, 1, **wider[kind])
    found = values(student, teacher, kind, hidden_weight=1.0, hidden_loss=loss)["hidden"]
    assert found.shape == (4,)
    assert found.min() > 0
    matching = Matching(settings(hidden_weight=1.0), student, teacher)
    assert len(matching.projections) == 3
    assert not len(Matching(settings(hidden_weight=1.0), student, model_of(kind, 1)).projections)


def test_attention_is_transferred_between_maps_of_unlike_sizes() -> None:
    """The larger maps are averaged; nothing is learned."""
    student, teacher = model_of("resnet"), model_of("resnet", 1, hidden_sizes=[12, 16, 20], embedding_size=12)
    assert values(student, teacher, "resnet", attention_weight=1.0)["attention"].min() > 0
    assert values(student, model_of("resnet"), "resnet", attention_weight=1.0)["attention"].max() < 1e-7


@pytest.mark.parametrize(
    ("layer_map", "expected"),
    [
        ("uniform", [(0, 1), (1, 3), (2, 5)]),
        ("last", [(2, 5)]),
        ([[0, 0], [-1, -2]], [(0, 0), (2, 4)]),
    ],
)
def test_layer_map(layer_map: Any, expected: list[tuple[int, int]]) -> None:
    """Layers counted from 1, or from the wrong end."""
    assert layer_pairs(layer_map, 3, 6) == expected


# ---- In the trainer ----

ROWS = [{name: torch.as_tensor(value).tolist() for name, value in row.items()} for row in tiny.text_rows(16)]


def trainer_of(student: Any = None, teacher: Any = None, folder: Any = "unused", **chosen: Any) -> DistillationTrainer:
    student = tiny.bert(0, num_layers=2) if student is None else student
    teacher = tiny.bert(1, num_layers=4, hidden_size=32) if teacher is None else teacher
    callbacks = chosen.pop("callbacks", [])
    return DistillationTrainer(
        student,
        teacher,
        settings(folder, **chosen),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny.tokenizer(),
        data_collator=DataCollatorWithPadding(tiny.tokenizer()),
        callbacks=callbacks,
    )


ALL: dict[str, Any] = {"relation_weight": 0.5, "hidden_weight": 0.3, "feature_weight": 2.0}


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    """A term that is logged and not trained on, or trained on with another weight."""
    trainer = trainer_of(folder=tmp_path, **ALL, alpha=0.3, num_train_epochs=2, logging_steps=1)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "relation_loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        expected = 0.3 * entry["label_loss"] + 0.7 * entry["soft_loss"]
        expected += sum(weight * entry[f"{name.split('_')[0]}_loss"] for name, weight in ALL.items())
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    assert entries[-1]["hidden_loss"] < entries[0]["hidden_loss"]


@pytest.mark.parametrize("accumulated", [2, 4])
def test_an_accumulated_batch_is_the_full_one(accumulated: int, tmp_path: Path) -> None:
    """Means of means: another student for each gradient_accumulation_steps."""
    weights = []
    for steps in (1, accumulated):
        batch = {"per_device_train_batch_size": 16 // steps, "gradient_accumulation_steps": steps}
        trainer = trainer_of(folder=tmp_path, **ALL, **batch, **tiny.SGD, max_steps=3, max_grad_norm=0.0)
        trainer.train()
        learned = [*trainer.student.parameters(), *trainer.matching.projections.parameters()]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in learned]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["relation_weight", "hidden_weight", "feature_weight"])
def test_gradient_checkpointing_gives_the_same_student(name: str, tmp_path: Path) -> None:
    """What is read in the backward pass, which runs layers again, in the place of what the forward pass gave."""
    weights = []
    for chosen in ({}, {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}):
        trainer = trainer_of(folder=tmp_path, **{name: 1.0}, **chosen, **tiny.SGD, max_steps=3)
        trainer.train()
        assert bool(trainer.student.is_gradient_checkpointing) == bool(chosen)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.student.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


def test_an_optimizer_of_ones_own_is_refused_where_projections_are_learned() -> None:
    """Projections that stay as they were drawn."""
    student = tiny.bert(0)
    with pytest.raises(ValueError, match="an optimizer of your own does not hold"):
        DistillationTrainer(
            student,
            tiny.bert(1, hidden_size=32),
            settings(hidden_weight=1.0),
            train_dataset=Dataset.from_list(ROWS),
            data_collator=DataCollatorWithPadding(tiny.tokenizer()),
            optimizers=(torch.optim.SGD(student.parameters(), lr=0.1), None),
        )


def test_rkd_is_of_each_micro_batch(tmp_path: Path) -> None:
    """What the docs say of it: relations among the rows of one micro-batch."""
    losses = []
    for steps in (1, 2):
        batch = {"per_device_train_batch_size": 16 // steps, "gradient_accumulation_steps": steps}
        own = {"feature_weight": 1.0, "feature_loss": "rkd", "max_steps": 1, "logging_steps": 1}
        trainer = trainer_of(folder=tmp_path, **own, **batch)
        trainer.train()
        losses.append(trainer.state.log_history[0]["feature_loss"])
    assert losses[0] > 0
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_projections_are_learned_resumed_and_in_no_saved_student(tmp_path: Path) -> None:
    """A resumed run that starts its projections anew; a published student with weights that nothing reads."""
    chosen: dict[str, Any] = {**ALL, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(tiny.bert(0, dropout=0.1), folder=tmp_path / "whole", **chosen)
    start = {name: tensor.clone() for name, tensor in whole.matching.projections.state_dict().items()}
    whole.train()
    learned = whole.matching.projections.state_dict()
    assert any(not torch.equal(start[name], learned[name]) for name in start)
    trainer_of(tiny.bert(0, dropout=0.1), folder=tmp_path / "part", callbacks=[Stop()], **chosen).train()
    assert (tmp_path / "part" / "checkpoint-3" / PROJECTIONS_FILE).exists()
    resumed = trainer_of(tiny.bert(0, dropout=0.1), folder=tmp_path / "part", **chosen)
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in resumed.matching.projections.state_dict().items():
        assert torch.equal(tensor, learned[name]), name
    for name, tensor in resumed.student.state_dict().items():
        assert torch.equal(tensor, whole.student.state_dict()[name]), name
    resumed.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / PROJECTIONS_FILE).exists()
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == tiny.bert(0).state_dict().keys()
    (tmp_path / "part" / "checkpoint-3" / PROJECTIONS_FILE).unlink()
    with pytest.raises(ValueError, match="has no projections"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))


def test_evaluation_is_by_labels_and_soft_targets_alone(tmp_path: Path) -> None:
    """An eval_loss that cannot be compared with that of a run without matching."""
    losses = []
    for chosen in (ALL, {}):
        trainer = trainer_of(folder=tmp_path, **chosen)
        losses.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_new_student_of_each_trial_is_matched(tmp_path: Path) -> None:
    """`model_init` makes another student for each trial: hooks on the first one compare nothing."""
    trainer = DistillationTrainer(
        teacher=tiny.bert(1, num_layers=4, hidden_size=32),
        args=settings(tmp_path, **ALL, max_steps=2, logging_steps=1),
        model_init=lambda: tiny.bert(0),
        train_dataset=Dataset.from_list(ROWS),
        data_collator=DataCollatorWithPadding(tiny.tokenizer()),
    )
    for _ in range(2):
        trainer.train()
        assert trainer.matching.student is trainer.student
        assert trainer.state.log_history[0]["relation_loss"] > 0


def with_fewer_pieces(texts: list[str], folder: Any) -> DistillationTrainer:
    """Return a trainer whose student keeps the word pieces of the film alone, and the rows of some texts."""
    whole = tiny.tokenizer()
    tokenizer, kept = prune_vocabulary(whole, count_tokens(whole(["the film is good", "a dull plot"])["input_ids"]), 1)
    student = tiny.bert(0)
    prune_embeddings(student, kept)
    assert len(kept) < len(whole)
    rows = Dataset.from_dict({"text": texts, "labels": [place % 3 for place in range(len(texts))], **tokenizer(texts)})
    return DistillationTrainer(
        student,
        tiny.bert(1, num_layers=4, hidden_size=32),
        settings(folder, relation_weight=1.0, hidden_weight=1.0, max_steps=1, logging_steps=1),
        train_dataset=rows,
        processing_class=tokenizer,
        teacher_processing_class=whole,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def test_a_student_with_fewer_word_pieces_is_matched(tmp_path: Path) -> None:
    """The same pieces by other numbers are the same tokens; where a word is cut in another way they are not."""
    trainer = with_fewer_pieces(["the film is good", "a dull plot", "the plot is dull", "a good film"], tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["relation_loss"] > 0
    trainer = with_fewer_pieces(["the film is good", "a funny and sad plot"], tmp_path)
    with pytest.raises(ValueError, match="student and teacher cut these rows into others"):
        trainer.train()


def test_a_teacher_with_other_word_pieces_is_refused(tmp_path: Path) -> None:
    """Tokens that are compared because they stand at the same place."""
    with pytest.raises(ValueError, match="the teacher has inputs of its own"):
        token_ids(tiny.tokenizer(), object(), "relation_weight")


def test_a_recipe_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    """An hour of a teacher's training, and then a family that is not known."""
    chosen = ["training.relation_weight=1", "training.use_cpu=true"]
    recipe = load_recipe("vision/digits", [*chosen, f"output_dir={tmp_path}/out"])
    with pytest.raises(ValueError, match="convnext is none of these"):
        distill(recipe, "vision/digits")
    assert not (tmp_path / "out" / "teacher").exists()


REFUSED: dict[str, tuple[Any, str]] = {
    "a function": (
        lambda: trainer_of(teacher=lambda batch: torch.zeros(len(batch["input_ids"]), 3), hidden_weight=1.0),
        "is not one model",
    ),
    "several": (lambda: trainer_of(teacher=[tiny.bert(1), tiny.bert(2)], relation_weight=1.0), "is not one model"),
    "negative": (lambda: settings(hidden_weight=-1.0), "hidden_weight must be a number of at least 0"),
    "cached": (lambda: settings(relation_weight=1.0, precompute_teacher_logits=True), "needs the teacher at each step"),
    "compiled": (lambda: settings(hidden_weight=1.0, torch_compile=True), "torch_compile does not allow"),
    "no effect": (lambda: settings(relation_heads=2), "relation_heads has no effect without relation_weight"),
    "map without": (lambda: settings(layer_map="last"), "no effect without hidden or attention_weight"),
    "a map": (lambda: settings(hidden_weight=1.0, layer_map="first"), "layer_map must be uniform, last or pairs"),
    "no such layer": (lambda: trainer_of(hidden_weight=1.0, layer_map=[[0, 9]]), "layer 9 of the teacher"),
    "no such relation layer": (lambda: trainer_of(relation_weight=1.0, relation_layer=4), "layers 0 to 3"),
    "heads": (lambda: trainer_of(relation_weight=1.0, relation_heads=5), "must divide the widths"),
    "family": (
        lambda: Matching(settings(relation_weight=1.0), model_of("resnet"), model_of("vit")),
        "resnet is none of these",
    ),
    "stages": (
        lambda: Matching(settings(hidden_weight=1.0), model_of("resnet"), model_of("vit")),
        "layers with layers or stages with stages",
    ),
    "no maps": (
        lambda: Matching(settings(attention_weight=1.0), model_of("vit"), model_of("vit", 1)),
        "compares maps of convolutions",
    ),
    "no head": (lambda: Matching(settings(feature_weight=1.0), nn.Linear(2, 2), nn.Linear(2, 2)), "no linear layer"),
    "tokens": (
        lambda: Matching(settings(feature_weight=1.0), tiny.bert_for_tokens(0), tiny.bert_for_tokens(1)),
        "one feature vector per row",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_matched_is_refused_before_any_training(case: str) -> None:
    """A term that trains nothing, or that fails hours later."""
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_without_a_gradient_are_refused(tmp_path: Path) -> None:
    """A frozen encoder, whose hidden states no training moves."""
    student = tiny.bert(0)
    for parameter in student.bert.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="no gradient reaches what it compares"):
        trainer_of(student, folder=tmp_path, hidden_weight=1.0, max_steps=1).train()


def test_images_are_matched(tmp_path: Path) -> None:
    """The whole way for a convolutional net."""
    student, teacher = tiny.resnet(0), tiny.resnet(1)
    chosen: dict[str, Any] = {"attention_weight": 10.0, "hidden_weight": 1.0, "feature_weight": 1.0}
    trainer = DistillationTrainer(
        student,
        teacher,
        settings(tmp_path, **chosen, max_steps=2, logging_steps=1),
        train_dataset=tiny.image_rows(16),
        data_collator=default_data_collator,
    )
    trainer.train()
    assert all(trainer.state.log_history[0][f"{name}_loss"] > 0 for name in ("attention", "hidden", "feature"))
    assert len(layers_of(student)) == len(student.config.depths)
