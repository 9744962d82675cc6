"""Labels that were flipped on purpose, found by teachers that have not seen them."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from hf_distill.cli import main as cli
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill

FLIPPED = np.random.default_rng(0).permutation(600)[:12]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    digits = load_digits()
    labels = digits.target.copy()
    labels[FLIPPED] = (labels[FLIPPED] + 1 + FLIPPED % 9) % 10
    pixels = (digits.images * 15.9).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    for split, rows in (("train", slice(0, 600)), ("test", slice(600, 900))):
        values = {"image": list(pixels[rows]), "label": labels[rows]}
        datasets.Dataset.from_dict(values, features=features).to_parquet(folder / "data" / f"{split}.parquet")
    net = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [64]}
    settings = {"num_train_epochs": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 32, "report_to": "none"}
    recipe = {
        "task": "image-classification",
        "data": {"path": str(folder / "data"), "eval_split": "test"},
        "teacher": {"config": net, "training": settings},
        "student": {"config": {**net, "hidden_sizes": [8]}},
        "baseline": False,
        "training": {**settings, "use_cpu": True},
        "output_dir": str(folder / "run"),
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(recipe))
    distill(load_recipe(str(folder / "x.yaml")), "x")
    return folder / "run"


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["hf-distill", "audit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.slow
def test_most_flipped_labels_are_among_the_first(run, monkeypatch, capsys):
    """A list whose head is chance, or rows of another number than those of the data."""
    code, out, _ = command(monkeypatch, capsys, str(run), "--folds", "3", "--json")
    assert code == 0
    found = json.loads(out)["findings"]
    doubted = [each["row"] for each in found if each["kind"] == "label" and each["split"] == "train"]
    assert len({*doubted[: len(FLIPPED)]} & {*FLIPPED.tolist()}) >= 8
    table = datasets.Dataset.from_parquet(str(run / "audit.parquet"), cache_dir=str(run.parent / "cache"))
    assert len(table) == len(found)
    assert table["kind"][0] == "label"
    code, out, _ = command(monkeypatch, capsys, str(run), "--rows", "2", "--output", str(run / "found.csv"))
    assert code == 0
    assert "Labels that the teacher doubts: " in out
    assert "Where the student differs from the teacher: " in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert (run / "found.csv").read_text().startswith("kind,split,row,label,teacher,student,doubt,input")


@pytest.mark.slow
def test_what_cannot_be_audited_is_refused(run, monkeypatch, capsys, tmp_path):
    """A traceback for a folder, or for a file of another kind."""
    for arguments, message in (
        ((str(tmp_path),), f"{tmp_path} has no predictions.parquet"),
        ((str(run), "--output", "x.txt"), "--output: expected a file that ends in .csv or .parquet"),
        ((str(run), "--folds", "1"), "--folds 1: there are 600 labelled rows"),
    ):
        code, _, err = command(monkeypatch, capsys, *arguments)
        assert code == 2
        assert err.startswith(f"error: {message}")
