"""The search of settings: one teacher, rows of its own to choose by, and a recipe that holds the best."""

from pathlib import Path
from typing import Any

import pytest

from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.search import Range, search

pytest.importorskip("optuna")
QUICK = ["training.num_train_epochs=2", "teacher.training.num_train_epochs=3", "data.max_train_rows=300"]
QUICK += ["training.use_cpu=true", "training.precompute_teacher_logits=true"]
RANGES = [Range.parse("training.temperature=1..8"), Range.parse("training.soft_loss=kl,mse")]


def test_the_best_settings_become_a_recipe_and_a_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials on the rows of the results; a teacher for each trial; a search that begins anew."""
    monkeypatch.chdir(tmp_path)
    told: list[tuple[int, list[str], float]] = []
    given: dict[str, Any] = {"tell": lambda *trial: told.append(trial)}
    chosen = [*QUICK, "output_dir=out"]
    search("vision/digits", chosen, RANGES, 2, **given)
    teacher = Path("out_search/teacher/teacher/model.safetensors")
    before = teacher.stat().st_mtime_ns
    found = search("vision/digits", chosen, RANGES, 3, **given)
    assert [number for number, _, _ in told] == [1, 2, 3]
    assert teacher.stat().st_mtime_ns == before
    assert found.value == max(value for _, _, value in told)
    recipe = load_recipe(found.recipe)
    assert (recipe.data.eval_split, recipe.output_dir, recipe.baseline) == ("test", "out", True)
    best = next(settings for _, settings, value in told if value == found.value)
    assert recipe.training["temperature"] == pytest.approx(float(best[0].partition("=")[2]))
    assert recipe.training["soft_loss"] == best[1].partition("=")[2]
    assert "a tenth of train" in found.recipe.read_text().splitlines()[0]
    assert load_recipe("out_search/trial/recipe.yaml").data.eval_split == 0.1
    assert not Path("out_search/trial/baseline").exists()
    with pytest.raises(ValueError, match="holds a search of other settings"):
        search("vision/digits", chosen, RANGES[:1], 3, **given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.alpha=0..1", Range("training.alpha", 0, 1)),
        ("training.num_train_epochs=1..4", Range("training.num_train_epochs", 1, 4)),
        ("student.from_teacher.num_layers=1..4", Range("student.from_teacher.num_layers", 1, 4, is_whole=True)),
        ("training.learning_rate=1e-5..1e-3:log", Range("training.learning_rate", 1e-5, 1e-3, is_log=True)),
        ("training.soft_loss=kl,mse", Range("training.soft_loss", choices=("kl", "mse"))),
    ],
)
def test_a_range_is_read(text: str, expected: Range) -> None:
    """Alpha of 0 or 1 alone, because both ends are whole numbers."""
    assert Range.parse(text) == expected


@pytest.mark.parametrize("text", ["training.alpha", "training.alpha=1", "a=2..1", "a=0..1:log", "a=x..y", "=1..2"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    """A search over nothing."""
    with pytest.raises(ValueError, match="expected"):
        Range.parse(text)


def test_a_value_that_the_recipe_refuses_is_found_before_any_training(tmp_path: Path) -> None:
    """An hour of trials before the first one out of range."""
    with pytest.raises(ValueError, match="alpha"):
        search("vision/digits", [f"output_dir={tmp_path}/out"], [Range.parse("training.alpha=0..2")], 2)
    assert not list(tmp_path.iterdir())


def test_another_search_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    """A teacher trained for a search that is then refused."""
    (tmp_path / "out_search").mkdir()
    (tmp_path / "out_search" / "search.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a search of other settings"):
        search("vision/digits", [*QUICK, f"output_dir={tmp_path}/out"], RANGES, 2)
    assert not (tmp_path / "out_search" / "teacher").exists()
