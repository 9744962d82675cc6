"""The picture of a training, and the numbers that it is drawn from."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_distill.evaluation.curves import training_curves
from hf_distill.evaluation.results import curve
from tests.evaluation.test_results import results


def history(count: int, *names: str, first: float = 2.0) -> list[dict[str, float]]:
    return [{"step": 10 * i, **{name: first / i for name in names}} for i in range(1, count + 1)]


CURVES = {
    "teacher": history(60, "loss", "label_loss"),
    "student": [*history(6, "loss", "soft_loss", "label_loss"), *history(3, "eval_loss", "eval_accuracy", first=0.3)],
    "baseline": [*history(6, "loss", "label_loss"), *history(3, "eval_accuracy", first=0.2)],
}


def picture(curves: dict) -> Image.Image:
    drawn = training_curves(replace(results(), curves=curves))
    assert drawn is not None
    return Image.open(io.BytesIO(drawn))


class TestPicture:
    def test_the_same_results_give_the_same_bytes_in_another_process(self):
        """A date in the file, and a commit for every rebuilt card."""
        found = replace(results(), curves=CURVES)
        Path("results.json").write_text(found.to_json())
        program = (
            "import sys; from pathlib import Path; from hf_distill.evaluation.results import Results\n"
            "from hf_distill.evaluation.curves import training_curves\n"
            "sys.stdout.buffer.write(training_curves(Results.read(Path('.'))))"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        assert training_curves(found) == other == training_curves(found)

    def test_the_users_settings_of_matplotlib_do_not_matter(self):
        """A dark style in a matplotlibrc, and pictures that differ from machine to machine."""
        found = replace(results(), curves=CURVES)
        plain = training_curves(found)
        with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "savefig.dpi": 300}):
            before = dict(matplotlib.rcParams)
            assert training_curves(found) == plain
            assert dict(matplotlib.rcParams) == before

    def test_it_is_small_and_leaves_pyplot_alone(self):
        """A model card of megabytes; a window that opens, or a figure of the user's that is drawn over."""
        drawn = training_curves(replace(results(), curves=CURVES))
        assert len(drawn) < 60_000
        code = "import hf_distill.runs.run_card, sys; sys.exit('matplotlib' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)
        code = (
            "import sys; from hf_distill.evaluation.curves import _png\n"
            "_png({('a', 'b'): {'student': ([1, 2], [1, 2])}}); sys.exit('matplotlib.pyplot' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_there_is_a_panel_for_losses_labels_and_evaluation(self):
        """A curve that was logged and is not shown."""
        widths = [picture(dict(list(CURVES.items())[:count])).width for count in (1, 2, 3)]
        assert widths[0] < widths[1] == widths[2]
        assert picture({"teacher": CURVES["teacher"]}).width * 3 == widths[2]

    def test_another_number_is_another_picture(self):
        """A picture that does not show the numbers at all."""
        one = np.asarray(picture(CURVES).convert("L"), dtype=int)
        other = np.asarray(picture({**CURVES, "baseline": history(6, "label_loss", first=9.0)}).convert("L"), dtype=int)
        assert one.shape != other.shape or np.abs(one - other).mean() > 0.1

    @pytest.mark.parametrize("curves", [{}, {"student": []}, {"student": history(1, "loss")}, {"x": history(9, "lr")}])
    def test_nothing_to_draw_makes_no_picture(self, curves):
        """An empty frame on the card."""
        assert training_curves(replace(results(), curves=curves)) is None

    def test_losses_of_zero_and_several_teachers_are_drawn(self):
        """A logarithm of 0; the second teacher in the first one's place."""
        zeros = [{"step": i, "loss": 0.0, "label_loss": 0.0} for i in range(4)]
        assert picture({"teacher-1": zeros, "teacher-2": history(4, "label_loss"), "stage-1": history(4, "label_loss")})


class TestCurve:
    def test_it_keeps_the_numbers_of_each_step(self):
        """Times of one machine in a file that is compared, and text where numbers are drawn."""
        log = [
            {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": float("nan"), "learning_rate": 1e-3},
            {"step": 1, "eval_accuracy": 0.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0},
            {"step": 2, "loss": "2.0", "done": True, "soft_loss": 1.0},
            {"epoch": 1.0, "loss": 1.0},
            {"step": 2, "epoch": 1.0, "eval_runtime": 3.0},
            {"step": 2, "train_runtime": 9.0, "train_loss": 1.5},
        ]
        assert curve(log) == [
            {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3},
            {"step": 1, "eval_accuracy": 0.5},
            {"step": 2, "soft_loss": 1.0},
        ]

    def test_a_long_history_is_thinned_evenly_and_keeps_its_ends(self):
        """A results.json of a hundred megabytes; a curve without its last point."""
        log = history(100_000, "loss")
        for place in range(0, 100_000, 10_000):
            log.insert(place, {"step": place, "eval_loss": 1.0})
        thinned = curve(log)
        losses = [entry for entry in thinned if "loss" in entry]
        assert len(losses) == 500
        assert (losses[0]["step"], losses[-1]["step"]) == (10, 1_000_000)
        assert max(np.diff([entry["step"] for entry in losses])) < 2100
        assert sum("eval_loss" in entry for entry in thinned) == 10
