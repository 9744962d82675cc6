"""The model card: from a recipe and its results alone, with no network and no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_distill.evaluation.report import markdown_table, summary
from hf_distill.evaluation.results import Results

_IN_WHEEL = Path(__file__).parent.parent / "model_cards" / "template.md"
_IN_CHECKOUT = Path(__file__).parent.parent.parent / "model_cards" / "template.md"


def template_path() -> Path:
    """Return the card's template, in a wheel or in a clone."""
    return _IN_WHEEL if _IN_WHEEL.exists() else _IN_CHECKOUT


def model_card(recipe: Mapping[str, Any], results: Results, command: str) -> ModelCard:
    """Fill in the card of a distilled student.

    Args:
        recipe: the resolved recipe, as in a run's recipe.yaml.
        results: what the run found.
        command: what repeats the run.
    """
    data, student, training = (recipe[key] for key in ("data", "student", "training"))
    teachers = recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
    source = data["dataset"] or Path(data["path"]).name
    hub_data = data["dataset"] if data["dataset"] and ":" not in data["dataset"] else None
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=results.task,
        base_model=next((_hub_id(teacher["model"]) for teacher in teachers if _hub_id(teacher["model"])), None),
        datasets=[hub_data] if hub_data else None,
        metrics=[name for name in recipe["metrics"] if name in results.student.metrics],
        tags=["knowledge-distillation", "distillation"],
        ignore_metadata_errors=False,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(template_path()),
        recipe=results.recipe,
        task_words=results.task.replace("-", " ").capitalize(),
        teacher_words=_teacher_words(teachers, recipe.get("stages", [])),
        student_words=_model_words(student),
        table=markdown_table(results),
        summary=summary(results),
        num_eval_rows=f"{results.data['num_eval_rows']:,}",
        num_train_rows=f"{results.data['num_train_rows']:,}",
        unlabelled_share=f"{results.data['unlabelled_share']:.1%}",
        data_words=f"{source}, {data['train_split']} for training",
        judged_split=_judged_split(data),
        moment="the best evaluation" if training.get("load_best_model_at_end") else "the last step",
        seed=training.get("seed", 42),
        objective=_objective(training),
        training=_training_words(training, data["augment"]),
        teacher_training="; ".join(
            dict.fromkeys(_training_words(each["training"], each["augment"] or data["augment"]) for each in teachers)
        ),
        environment=", ".join(f"{name} {version}" for name, version in results.environment.items()),
        command=command,
    )


def _teacher_words(teachers: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]) -> str:
    words = [_model_words(teacher) for teacher in teachers]
    text = words[0] if len(words) == 1 else f"{len(words)} teachers ({'; '.join(words)})"
    return text + "".join(f", by way of {_model_words(stage)}" for stage in stages)


def _objective(training: Mapping[str, Any]) -> str:
    """Return the formula with its numbers; what moves during the training stands as `start to end`."""
    alpha, alpha_end = training.get("alpha", 0.1), training.get("alpha_end")
    soft, temperature = round(1 - alpha, 10), training.get("temperature", 4.0)
    temperature_end = training.get("temperature_end")
    if alpha_end is not None:
        alpha, soft = f"({alpha} to {alpha_end})", f"({soft} to {round(1 - alpha_end, 10)})"
    if temperature_end is not None:
        temperature = f"{temperature} to {temperature_end}"
    schedule = training.get("schedule", "constant")
    how = "" if schedule == "constant" else f", {schedule} schedule"
    return f"{alpha} x label loss + {soft} x T^2 KL(teacher / T, student / T), T = {temperature}{how}"


def _judged_split(data: Mapping[str, Any]) -> str:
    return str(data["test_split"] or data["eval_split"] or "the evaluation split")


def _hub_id(model: str | None) -> str | None:
    """Return a model's Hub id; a local path is nobody else's business."""
    if model is None or Path(model).is_absolute() or model.startswith(".") or Path(model).exists():
        return None
    return model


def _model_words(section: Mapping[str, Any]) -> str:
    if section.get("from_teacher"):
        return f"layers {', '.join(map(str, section['from_teacher']['layers']))} of it"
    if section.get("column"):
        return f"the column `{section['column']}` of the data"
    if section["model"]:
        return f"`{_hub_id(section['model']) or Path(section['model']).name}`"
    config = section["config"]
    details = ", ".join(f"{name} {value}" for name, value in config.items() if name != "model_type")
    return f"a `{config['model_type']}` ({details})"


def _training_words(settings: Mapping[str, Any] | None, augment: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "none, it was ready"
    changes = {} if augment is None else {name: value for name, value in augment.items() if value}
    settings = {**settings, **changes}
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "the defaults"
