"""The report of finished runs: from what they have left, and the rows of their data."""

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hf_distill.evaluation.diagnosis import diagnose
from hf_distill.evaluation.predictions import PREDICTIONS, Predictions
from hf_distill.evaluation.report.page import Input, RunPage, page
from hf_distill.evaluation.results import Results
from hf_distill.models.pixels import plain_image
from hf_distill.models.sources import first_line
from hf_distill.runs.opening import splits_of
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.workspace import PICTURES, REPORT, write_whole

_SIDE = 128  # pixels of an image on the page, at most


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of finished runs, and its pictures as PNG files in the folder `report` beside it.

    Args:
        runs: their output folders.
        output: the page; by default report.html in the folder of the one run.

    Raises:
        ValueError: a folder holds no finished run, or there are several and no file is named.
    """
    if output is None:
        if len(runs) > 1:
            raise ValueError("--output: name the page of several runs, FILE.html")
        output = runs[0] / REPORT
    text, pictures = page([_of_run(run) for run in runs])
    folder = output.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(output, text)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    return output


def report_of_train(run: Path) -> Path | None:
    """Write the page of a run that has just ended, whose results a page that cannot be drawn must not spoil."""
    if (run / REPORT).is_file() and (run / REPORT).stat().st_mtime_ns > (run / "results.json").stat().st_mtime_ns:
        return run / REPORT
    try:
        return write_report([run])
    except Exception as error:  # of a library that draws, or of a data set that is gone
        warnings.warn(f"the report was not written: {first_line(error)}", UserWarning, stacklevel=2)
        return None


def diagnosis_of(run: Path) -> list[str]:
    """Say in a sentence each what may be wrong with the student of a finished run; see `evaluation.diagnosis`."""
    recipe, results = read_resolved(run / "recipe.yaml"), Results.read(run)
    predictions = Predictions.read(run) if (run / PREDICTIONS).is_file() else None
    return [f"Perhaps {each}." for each in diagnose(results, predictions, recipe.model_dump())]


def _of_run(run: Path) -> RunPage:
    missing = [name for name in ("recipe.yaml", "results.json") if not (run / name).is_file()]
    if missing:
        raise ValueError(f"{run} holds no finished run, it has no {missing[0]}: name the output_dir of a train command")
    recipe, results = read_resolved(run / "recipe.yaml"), Results.read(run)
    notes, input_of = [], None
    predictions = Predictions.read(run) if (run / PREDICTIONS).is_file() else None
    if predictions is None:
        notes.append(f"The run has no {PREDICTIONS}, and so there is nothing about its rows.")
    else:
        try:
            input_of = _inputs(recipe, results)
        except (ValueError, OSError, ImportError) as error:
            notes.append(f"The rows themselves are not shown, the data cannot be opened: {first_line(error)}")
    temperature = float(recipe.training.get("temperature", 4.0))
    return RunPage(results.recipe, results, predictions, temperature, input_of, [*diagnosis_of(run), *notes])


def _inputs(recipe: Recipe, results: Results) -> Input:
    """Return what stands in the rows of a run's evaluation data."""
    splits = splits_of(recipe)
    rows = (splits.evaluation if splits.test is None else splits.test).with_format(None)
    if len(rows) != results.data["num_eval_rows"]:
        raise ValueError(f"there are {len(rows):,} evaluation rows now, and were {results.data['num_eval_rows']:,}")
    columns = splits.columns.inputs

    def of_text(row: int) -> tuple[str, str | None]:
        values = [rows[row][name] for name in columns]
        return " / ".join(" ".join(each) if isinstance(each, list) else str(each) for each in values), None

    def of_image(row: int) -> tuple[str, str | None]:
        return "", _data_uri(rows[row][columns[0]], recipe.data.background)

    return of_text if recipe.is_text else of_image


def _data_uri(image: Any, background: str) -> str:
    """Return an image as a data URI of a small PNG."""
    shown: Image.Image = plain_image(image, background).copy()
    shown.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    shown.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
