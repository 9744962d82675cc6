"""From which confidence on a student may answer alone, and the class that does it."""

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy.stats import binomtest
from transformers import ViTImageProcessor, pipeline

import hf_distill
from hf_distill.evaluation.cascade import Cascade, thresholds
from hf_distill.evaluation.predictions import Predictions


def made(count: int, seed: int = 0) -> Predictions:
    """A student that is the less right the less sure it is, as its teacher in other rows."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=count)
    clear = random.uniform(0, 6, size=(count, 1)) * np.eye(3)[labels]
    logits = {"student": clear + random.normal(size=(count, 3)), "teacher": 3 * clear + random.normal(size=(count, 3))}
    return Predictions([*"abc"], np.arange(count), None, labels, logits)


def part(whole: Predictions, rows: np.ndarray) -> Predictions:
    logits = {name: each[rows] for name, each in whole.logits.items()}
    return Predictions(whole.label_names, whole.rows[rows], None, whole.labels[rows], logits)


@pytest.mark.parametrize("by", ["agreement", "accuracy"])
@pytest.mark.parametrize("target", [0.9, 0.97])
def test_a_threshold_misses_its_target_on_new_rows_in_one_of_twenty_splits(by, target):
    """A promise that holds on the rows alone that it was made on."""
    whole, random = made(20_000), np.random.default_rng(1)
    missed, shares = 0, []
    for _ in range(200):
        order = random.permutation(len(whole.labels))
        (found,) = thresholds(part(whole, order[:1000]), [target], by=by)
        new = part(whole, order[1000:])
        exp = np.exp(new.logits["student"] - new.logits["student"].max(-1, keepdims=True))
        alone = exp.max(-1) / exp.sum(-1) >= found.confidence
        student, teacher = (new.logits[name].argmax(-1) for name in ("student", "teacher"))
        worse = alone & (student != teacher) & ((teacher == new.labels) | (by == "agreement"))
        missed += 1 - worse.mean() < target
        shares.append(found.share)
    assert missed <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)
    assert np.mean(shares) > 0.3


def test_the_figures_are_those_of_the_rows():
    """A bound of another test, or an accuracy of the student alone."""
    given = made(500)
    (found,) = thresholds(given, [0.95])
    exp = np.exp(given.logits["student"])
    alone = (exp.max(-1) / exp.sum(-1)) >= found.confidence * (1 - 1e-12)
    student, teacher = (given.logits[name].argmax(-1) for name in ("student", "teacher"))
    together = np.where(alone, student, teacher)
    assert found.share == alone.mean()
    assert found.found == pytest.approx((together == teacher).mean())
    assert found.accuracy == pytest.approx((together == given.labels).mean())
    exact = binomtest(int((together == teacher).sum()), 500, alternative="greater").proportion_ci(0.95, method="exact")
    assert found.bound == pytest.approx(exact.low)
    assert found.bound >= 0.95
    # one more row of the least confidence that is left, wrong: the target is out of reach
    (never,) = thresholds(given, [0.99999])
    assert (never.share, never.found, never.confidence) == (0, 1, None)


@pytest.mark.parametrize(
    ("targets", "by", "message"), [([1.2], "agreement", "above 0 and below 1"), ([0.9], "f1", "agreement or accuracy")]
)
def test_targets_out_of_range_are_refused(targets, by, message):
    """A threshold of 95 for 0.95."""
    with pytest.raises(ValueError, match=message):
        thresholds(made(50), targets, by=by)
    bare = made(50)
    bare.labels[:] = -100
    assert thresholds(bare, [0.9])[0].accuracy is None
    with pytest.raises(ValueError, match="needs labels"):
        thresholds(bare, [0.9], by="accuracy")


@pytest.fixture
def folders(tmp_path):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    for seed, name in enumerate(("student", "teacher")):
        tiny.bert(seed, **names).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    return str(tmp_path / "student"), str(tmp_path / "teacher")


def test_the_teacher_answers_what_the_student_is_not_sure_of(folders):
    """An answer of the one under the name of the other, or of the next row."""
    texts = ["good film", "bad plot", "film film film", "dull"]
    student, teacher = (pipeline("text-classification", folder, device="cpu") for folder in folders)
    alone, asked = student(texts), teacher(texts)
    middle = sorted(each["score"] for each in alone)[2]
    found = hf_distill.Cascade(*folders, middle, device="cpu")(texts)
    for each, own, other in zip(found, alone, asked, strict=True):
        expected = own if own["score"] >= middle else other
        assert (each["label"], each["by"]) == (expected["label"], "student" if expected is own else "teacher")
        assert each["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert {each["by"] for each in found} == {"student", "teacher"}
    assert Cascade(student, teacher, 1.0)("good film")["by"] == "teacher"
    assert {each["by"] for each in Cascade(student, teacher, 0.0)(texts)} == {"student"}


def test_images_and_refusals(folders, tmp_path):
    """Labels of one model read as those of another."""
    tiny.vit().save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    picture = Image.new("RGB", (8, 8), "red")
    assert Cascade(tmp_path / "vit", tmp_path / "vit", 0.0, device="cpu")(picture)["by"] == "student"
    with pytest.raises(ValueError, match="student and teacher have other labels"):
        Cascade(folders[0], tmp_path / "vit", 0.5)
    with pytest.raises(ValueError, match="threshold must be a probability"):
        Cascade(*folders, 95)
