"""Write recipe_reference.md and config_reference.md: the schema of recipes, the fields of DistillationConfig."""

import types
import typing
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hf_distill import DistillationConfig
from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.runs.recipe.schema import (
    Augment,
    Data,
    FromTeacher,
    Hub,
    Metric,
    Recipe,
    SpecialistSettings,
    Stage,
    Student,
    Teacher,
    Unlabelled,
    Vocabulary,
)

SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "data": Data,
    "data.augment, teacher.augment": Augment,
    "teacher": Teacher,
    "teacher.specialist": SpecialistSettings,
    "student": Student,
    "data.unlabelled": Unlabelled,
    "student.from_teacher": FromTeacher,
    "student.from_teacher.vocabulary": Vocabulary,
    "stages, each": Stage,
    "metrics, each that is a mapping": Metric,
    "hub": Hub,
}


def recipe_reference() -> str:
    """Return the keys of a recipe, a table for each section."""
    parts = ["# Keys of a recipe", "Made by `python docs/reference.py` from the schema that reads recipes."]
    for name, section in SECTIONS.items():
        parts.append(f"## {name or 'At the top'}")
        rows = [
            f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |"
            for key, field in section.model_fields.items()
        ]
        parts.append("\n".join(["| key | takes | default | |", "| --- | --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def soft_losses() -> str:
    """Return the table of the soft losses."""
    rows = []
    for name, loss in SOFT_LOSSES.items():
        kinds = ", ".join(kind.removesuffix("_classification").replace("_", " ") for kind in loss.problem_types)
        options = ", ".join(f"`{key}` {value:g}" for key, value in loss.options.items())
        marks = [loss.uses_labels, loss.is_of_batch, loss.rules_out]
        cells = [f"`{name}`", _cell(loss.formula), kinds, str(loss.min_classes), *("yes" if m else "no" for m in marks)]
        rows.append(f"| {' | '.join([*cells, options])} |")
    names = ["soft_loss", "formula", "labels", "least classes", "uses labels", "depends on the batch", "takes -inf"]
    head = f"| {' | '.join([*names, 'options'])} |"
    return "\n".join(["## Soft losses", "", head, "| --- " * 8 + "|", *rows]) + "\n"


def config_reference() -> str:
    """Return the fields that `DistillationConfig` adds to those of `TrainingArguments`, and the soft losses."""
    hints = typing.get_type_hints(DistillationConfig)
    rows = []
    for name in DistillationConfig.__annotations__:
        field = DistillationConfig.__dataclass_fields__[name]
        choices = field.metadata.get("choices")
        kind = _type(hints[name]) if choices is None else ", ".join(f"`{choice}`" for choice in choices)
        default = (
            ""
            if field.default in (None, MISSING)
            else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        )
        rows.append(f"| `{name}` | {kind} | {default} | {_cell(field.metadata.get('help', ''))} |")
    return "\n\n".join(
        [
            "# Fields of DistillationConfig",
            "Made by `python docs/reference.py` from the fields themselves. All fields of "
            "[TrainingArguments]"
            "(https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments) "
            "are fields of this, too; in a recipe they stand under `training`.",
            "\n".join(["| field | takes | default | |", "| --- | --- | --- | --- |", *rows]),
            soft_losses(),
        ]
    )


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        found = dict.fromkeys(_type(part) for part in typing.get_args(annotation) if part is not type(None))
        return " or ".join(found)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin is list:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, [], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    folder = Path(__file__).parent
    (folder / "recipe_reference.md").write_text(recipe_reference(), encoding="utf-8")
    (folder / "config_reference.md").write_text(config_reference(), encoding="utf-8")
