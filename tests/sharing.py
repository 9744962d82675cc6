"""Soft targets of small recipes, kept and shared."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hf_distill.teachers.cache.builder import CacheBuilder

TARGETS = "out/_teacher_logits"


def recipe_file(recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(recipe))
    return Path(name)


def asked_about(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Count in `total` the rows that a teacher is asked about from now on, whatever for."""
    count, run_teacher = SimpleNamespace(total=0), CacheBuilder._run_teacher

    def counting(builder: CacheBuilder, batch: dict[str, Any]) -> Any:
        count.total += len(next(iter(batch.values())))
        return run_teacher(builder, batch)

    monkeypatch.setattr(CacheBuilder, "_run_teacher", counting)
    return count
