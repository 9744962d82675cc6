"""Recipes that are wrong by their meaning, or made to harm: all are refused with a line, and soon."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill.runs.recipe.reading import RecipeError, find_recipe, load_recipe

_INEXACT = "would end with other weights"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=.nan", "training.learning_rate: must be a finite number, got nan"),
        ("training.num_train_epochs=.inf", "training.num_train_epochs: must be a finite number, got inf"),
        ("training.temperature=.inf", "training.temperature: must be > 0, got inf"),
        ("teacher.training.weight_decay=.nan", "teacher.training.weight_decay: must be a finite number, got nan"),
        ("training.weight_decay=-1.0", "training.weight_decay: must be >= 0, got -1.0"),
        ("training.max_grad_norm=-1.0", "training.max_grad_norm: must be >= 0, got -1.0"),
        ("training.adam_epsilon=-1.0", "training.adam_epsilon: must be >= 0, got -1.0"),
        ("training.adam_beta1=2.0", "training.adam_beta1: must be 0 to 1, got 2.0"),
        ("training.label_smoothing_factor=1.5", "training.label_smoothing_factor: must be 0 to 1, got 1.5"),
        ("training.seed=-1", "training.seed: must be 0 to 4294967295, got -1"),
        ("training.dataloader_num_workers=-1", "training.dataloader_num_workers: must be >= 0, got -1"),
        ("training.max_steps=0", "training.max_steps: must be > 0, or left out for whole epochs; got 0"),
        ("training.save_only_model=true", _INEXACT),
        ("training.ignore_data_skip=true", _INEXACT),
    ],
)
def test_a_setting_without_meaning_is_refused_with_its_key(override: str, message: str) -> None:
    """Transformers finds these out after the teacher has been trained, or trains a model of NaN."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("vision/digits", [override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["training.save_only_model=false", "training.max_steps=-1", "training.seed=0"])
def test_its_harmless_value_is_taken(override: str) -> None:
    """A check that refuses whatever names the setting would refuse recipes that are right."""
    assert load_recipe("vision/digits", [override])


def _refusal(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    return str(caught.value)


def _bomb(key: str) -> str:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([*lines, f"{key}: *x9", ""])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_bomb("label_names"), "it holds more than 100,000 values"),
        ("data: &a {b: *a}\n", "it holds more than 100,000 values"),
        ("data: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("# " + "x" * 2**20, "a recipe at most 1,048,576"),
    ],
    ids=["bomb", "loop", "deep", "large"],
)
def test_a_file_beyond_all_bounds_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """700 bytes of aliases took all memory, and deep nesting ended in a traceback of thousands of lines."""
    refusal = _refusal(tmp_path / "recipe.yaml", text)
    assert message in refusal
    assert len(refusal.splitlines()) == 1


def test_of_many_problems_the_first_are_listed(tmp_path: Path) -> None:
    """20,000 unknown keys gave as many lines."""
    lines = _refusal(tmp_path / "recipe.yaml", "".join(f"unknown{i}: 1\n" for i in range(500))).splitlines()
    assert len(lines) == 21
    assert "more problems" in lines[-1]


def test_control_characters_and_long_values_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A key of a recipe could clear the screen, and a value filled it."""
    text = find_recipe("vision/digits").read_text(encoding="utf-8")
    refusal = _refusal(tmp_path / "recipe.yaml", text + '"a\\e[2Jb": 1\n')
    assert "\x1b" not in refusal
    assert "\\x1b[2Jb: unknown key" in refusal
    with pytest.raises(RecipeError) as caught:
        load_recipe("vision/digits", [f"output_dir=[{'a' * 5000}]"])
    assert len(str(caught.value)) < 400


def test_merge_keys_are_read_and_what_is_given_beside_them_counts(tmp_path: Path) -> None:
    """They were refused as a tag that no one knows; that a key is given twice is still refused."""
    text = find_recipe("vision/digits").read_text(encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    head, _, _ = text.partition("\ntraining:")
    file.write_text(head + "\ntraining: {<<: {alpha: 0.3, temperature: 7.0}, alpha: 0.4}\noutput_dir: out\n")
    training = load_recipe(file).training
    assert (training["alpha"], training["temperature"]) == (0.4, 7.0)
    assert "is given twice" in _refusal(file, "task: a\ntask: b\n")


def test_a_spoilt_student_is_a_failure_of_the_run(tmp_path: Path) -> None:
    """A student of NaN was measured, described in a card and published."""
    out = tmp_path / "out"
    overrides = ["training.num_train_epochs=1", "training.learning_rate=1e30", "teacher.training.num_train_epochs=3"]
    command = [sys.executable, "-m", "hf_distill", "train", "vision/digits", *overrides, f"output_dir={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "student: the trained model gives logits that are not finite numbers" in " ".join(
        (done.stdout + done.stderr).split()
    )
    assert not (out / "results.json").exists()
