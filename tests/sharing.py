"""Soft targets of small recipes, kept and shared."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hf_distill.training.answering import AnsweringTrainer

TARGETS = "out/_teacher_logits"


def recipe_file(recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(recipe))
    return Path(name)


def asked_about(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Count in `total` the rows that a teacher is asked about from now on, whatever for."""
    count, ask = SimpleNamespace(total=0), AnsweringTrainer._ask

    def counting(trainer: AnsweringTrainer, inputs: dict[str, Any]) -> Any:
        count.total += len(next(iter(inputs.values())))
        return ask(trainer, inputs)

    monkeypatch.setattr(AnsweringTrainer, "_ask", counting)
    return count
