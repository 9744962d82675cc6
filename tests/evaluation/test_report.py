"""The page of a run: it needs no network, shows what the figures are, and no text on it is code."""

import base64
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.report.page import RunPage, page
from hf_distill.evaluation.report.pictures import who_is_right
from hf_distill.evaluation.results import Difference, ModelResult, Results

EVIL = "<script>alert(1)</script> $\\frac{$ 猫"


def results(**fields) -> Results:
    curve = [{"step": step, "epoch": float(step), "loss": 40.0 / step**4, "eval_accuracy": 0.5} for step in (1, 2, 3)]
    models = {
        name: ModelResult({"accuracy": 0.5 + place / 10}, 1000 * (place + 1), 0.1, 3.0, 1.0 + place, 50.0)
        for place, name in enumerate(("baseline", "student", "teacher"))
    }
    base = {
        "task": "text-classification",
        "recipe": "mine",
        **models,
        "agreement": 0.75,
        "gap_closed": 0.5,
        "environment": {"torch": "2"},
        "data": {"num_train_rows": 10, "num_eval_rows": 60},
        "curves": {"teacher": curve, "student": curve},
        "differences": {"student_baseline": Difference(0.1, 0.01, 60)},
    }
    return Results(**{**base, **fields})


def predictions(count: int = 60, names: tuple[str, ...] = ("a", "b", EVIL)) -> Predictions:
    random = np.random.default_rng(0)
    labels = random.integers(3, size=count)
    logits = {
        name: (noise * random.normal(size=(count, 3)) + 3 * np.eye(3)[labels]).astype(np.float32)
        for name, noise in (("student", 3.0), ("teacher", 1.5), ("baseline", 4.0))
    }
    return Predictions([*names], np.arange(count), None, labels, logits)


def run(**fields) -> RunPage:
    base = {"name": "mine", "results": results(), "predictions": predictions(), "temperature": 4.0}
    return RunPage(**{**base, "input_of": lambda row: (f"text {row} {EVIL}", None), **fields})


def test_the_page_needs_no_network_and_runs_no_code():
    """A report that phones home, or a class name of a stranger that is a script."""
    text, pictures = page([run(notes=[EVIL])])
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    found = re.findall(r'(?:src|srcset|href|url)\s*[=(]\s*"?([^"\s>]+)', text)
    assert len(found) > 10
    assert all(each.startswith("data:") for each in found)
    for picture in pictures:
        for panel in picture.panels:
            assert set(panel) == {"light", "dark"}
            assert "#1b1b1b" in panel["light"]
            assert "#1b1b1b" not in panel["dark"]
            assert "<script" not in panel["light"]
            assert "mathdefault" not in panel["light"]
            assert base64.b64encode(panel["dark"].encode()).decode() in text
        assert picture.png.startswith(b"\x89PNG")
    assert {each.name for each in pictures} == {"trade_offs", "curves", "reliability", "who_is_right", "confusion"}
    assert page([run(notes=[EVIL])])[0] == text


def test_what_is_shown_is_what_was_found():
    """Rows of another place, or a sentence of another run."""
    given = predictions()
    text, _ = page([run()])
    assert "Student against baseline: +10.0 points of accuracy" in text
    student, teacher = (given.logits[name].argmax(-1) for name in ("student", "teacher"))
    part = text[text.index("Hardest rows") :].partition("<h2>")[0]
    shares = np.exp(given.logits["student"]) / np.exp(given.logits["student"]).sum(-1, keepdims=True)
    loss = -np.log(shares[np.arange(60), given.labels])
    hard = sorted(np.flatnonzero((student != given.labels) & (teacher == given.labels)), key=lambda row: -loss[row])
    assert [int(row) for row in re.findall(r"text (\d+) ", part)] == hard[:12]
    assert len(hard) > 3
    soft = text[text.index("beyond its first choice") :].partition("<h2>")[0]
    sharpest, flattest = (float(f(float(each) for each in re.findall(r"width: ([\d.]+)%", soft))) for f in (max, min))
    assert sharpest > 90
    assert flattest < 10


def test_several_runs_stand_on_one_page():
    """Two reports side by side in two windows."""
    text, pictures = page([run(), run(name="other", results=results(recipe="other"))])
    assert text.count("<section>") == 2
    assert "2 runs" in text
    legend = pictures[0].panels[0]["light"]
    assert {"mine: student", "other: student"} <= set(re.findall(r"(?:mine|other): student", legend))


def test_a_run_without_predictions_or_labels_has_a_page():
    """A traceback for a run of an earlier version."""
    text, pictures = page([run(predictions=None, results=results(baseline=None, gap_closed=None))])
    assert {each.name for each in pictures} == {"trade_offs", "curves"}
    bare = predictions()
    bare.labels[:] = -100
    text, pictures = page([run(predictions=bare, input_of=None)])
    assert "Hardest rows" not in text
    assert "row " in text[text.index("beyond its first choice") :]
    given = predictions()
    tagged = Predictions(given.label_names, given.rows // 3, given.rows % 3, given.labels, given.logits)
    assert "When the student may predict alone" in page([run()])[0]
    assert (
        "When the student may predict alone" not in page([run(predictions=tagged)])[0]
    )  # of words there is no cascade
    good = predictions()
    good.logits["student"] = good.logits["teacher"] = 9 * np.eye(3)[good.labels]
    assert who_is_right(good) is None


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(width, tmp_path):
    """A page wider than a phone."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium")
    file = tmp_path / "report.html"
    probe = "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page([run()])[0]).replace("</body>", probe)
    file.write_text(text, encoding="utf-8")
    options = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--window-size={max(width, 500)},2000"]
    shown = subprocess.run([*options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    wide, inner = map(int, re.search(r"<title>(\d+) (\d+)</title>", shown.stdout).groups())
    assert wide <= inner
    picture = tmp_path / "page.png"
    subprocess.run([*options, f"--screenshot={picture}", file.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(2**24)
    assert len(colours) > 50
    assert Path(picture).stat().st_size > 20_000
