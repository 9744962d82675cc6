"""Parts that all cards share: the template, and words and fields that go into it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_distill.data.soft_losses import MATCHING_TERMS, SOFT_LOSSES
from hf_distill.hub.card.origins import Origins

TEMPLATE = Path(__file__).parent / "template.md"
_SOFT_LOSSES = {
    "multi_label_classification": "the sum over the labels of T^2 KL(teacher / T, student / T)",
    "regression": "squared error to the teacher",
}


# ---- Metadata ----


def license_fields(license: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata about a license; see `licenses.student_license`."""
    return {name: license.get(name) for name in ("license", "license_name", "license_link")}


def base_model_fields(origins: Origins) -> dict[str, Any]:
    """Return the metadata about what a student comes from.

    Several base models are said to be no merge, which is what the Hub makes of them otherwise.
    """
    models = origins.base_models
    fields: dict[str, Any] = {"base_model": models[0] if len(models) == 1 else models or None}
    if len(models) > 1:
        fields["base_model_relation"] = "adapter" if origins.is_adapter else "finetune"
    return fields


# ---- Words ----


def objective(training: Mapping[str, Any], problem_type: str | None = None) -> str:
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
    soft_loss, scale = _soft_loss(training, problem_type), f", T = {temperature}"
    scale = scale if "T" in soft_loss else ""
    weights = {compared: training.get(f"{name}_weight") for name, compared in MATCHING_TERMS.items()}
    matching = "".join(f" + {weight:g} x {compared}" for compared, weight in weights.items() if weight)
    return f"{alpha} x label loss + {soft} x {soft_loss}{scale}{how}{matching}"


def _soft_loss(training: Mapping[str, Any], problem_type: str | None) -> str:
    """Say in words what the soft loss is; p is the teacher's distribution at temperature T, q the student's."""
    name = training.get("soft_loss") or "kl"
    if name == "kl":
        formula = _SOFT_LOSSES.get(problem_type or "", "T^2 KL(teacher / T, student / T)")
    else:
        options = {**SOFT_LOSSES[name].options, **(training.get("soft_loss_options") or {})}
        numbers = ", ".join(f"{key} = {value:g}" for key, value in options.items())
        formula = f"[{SOFT_LOSSES[name].formula}{'; ' if numbers else ''}{numbers}]"
    return f"{formula} of standardized logits" if training.get("standardize_logits") else formula


def settings(chosen: Mapping[str, Any], augment: Mapping[str, Any] | None = None) -> str:
    """Return settings as `name value, name value`; a token is none of them."""
    changes = {} if augment is None else {name: value for name, value in augment.items() if value}
    shown = {name: value for name, value in {**chosen, **changes}.items() if not name.endswith("_token")}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "the defaults"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of two columns without a header."""
    cells = (" ".join(text.replace("|", "\\|").split()) for row in rows for text in row)
    lines = [f"| {name} | {text} |" for name, text in zip(cells, cells, strict=True)]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def license_words(license: Mapping[str, str], lines: Sequence[str]) -> str:
    """Say which license it is, and what those of the teachers say to it (see `licenses.license_conflicts`)."""
    own = license.get("license_name") or license.get("license")
    text = f"`{own}`." if own else "None is stated: whoever publishes it sets `license` at the head of README.md."
    return "\n".join([text, *(f"\n> **Before you use or publish it**: {line}." for line in lines)])


def code_of_others(recipe: Mapping[str, Any]) -> str | None:
    """Say which Python code of others a resolved recipe asks to run; None: it asks for none."""
    teachers = recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
    sections = {"teacher" if len(teachers) == 1 else f"teacher-{i}": each for i, each in enumerate(teachers, start=1)}
    sections |= {f"stage-{i}": each for i, each in enumerate(recipe["stages"], start=1)}
    sections["student"] = recipe["student"]
    found = []
    for role, section in sections.items():
        if section["trust_remote_code"]:
            at = f" at {section['revision']}" if section["revision"] else ""
            found.append(f"{role} {section['model']}{at}")
        if section["processor_trust_remote_code"]:
            found.append(f"{role}'s processor {section['processor']}")
    if recipe["data"]["processor_trust_remote_code"]:
        found.append(f"processor {recipe['data']['processor']}")
    for metric in recipe["metrics"]:
        if isinstance(metric, Mapping) and metric["trust_remote_code"]:
            found.append(f"metric {metric['name']}" + (f" at {metric['revision']}" if metric["revision"] else ""))
    return f"This recipe runs code of others: {', '.join(found)}." if found else None


def yaml_of(values: dict[str, Any]) -> str:
    """Write settings as YAML, in their order."""
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def split_words(split: str | float, train: str) -> str:
    """Name a split, which may be a fraction of the training split."""
    return split if isinstance(split, str) else f"a held-out {100 * split:g}% of {train}"
