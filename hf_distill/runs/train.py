"""Join the parts: a recipe goes in, a teacher, a student, a baseline and their results come out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from hf_distill.evaluation.cascade import thresholds
from hf_distill.evaluation.curves import PLOT, training_curves
from hf_distill.evaluation.environment import environment
from hf_distill.evaluation.latency import Speed
from hf_distill.evaluation.metrics import agreement, difference, of_the_same, per_class, right_in_the_same
from hf_distill.evaluation.predictions import PREDICTIONS, Predictions
from hf_distill.evaluation.results import Difference, ModelResult, Results, gap_closed
from hf_distill.hub.commit import PushResult
from hf_distill.hub.destination import Destination
from hf_distill.hub.push import check_destination
from hf_distill.hub.readme import license_in
from hf_distill.runs.building import Member
from hf_distill.runs.data_summary import summarize
from hf_distill.runs.opening import open_run
from hf_distill.runs.preprocessing import Section
from hf_distill.runs.progress import Progress
from hf_distill.runs.publish import publish
from hf_distill.runs.recipe.schema import Hub, Recipe
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.runs.run_card import card_of, write_card
from hf_distill.runs.speed import speeds
from hf_distill.runs.stages import Run
from hf_distill.runs.teacher_results import evaluate_teachers, release_teachers, teacher_info


def distill(recipe: Recipe, name: str, *, overwrite: bool = False, progress: Progress | None = None) -> Results:
    """Run a recipe: teacher, student, baseline, results.

    What is finished in the output folder is kept, and a stage that was stopped goes on at its last checkpoint, with
    the same final weights as if it had not been. If the student is to be published (`publish_student`, afterwards), it
    is found out first whether that is possible. A run that is finished is not evaluated again.

    Args:
        recipe: what to do.
        name: of the recipe, for results and card.
        overwrite: make again the stages whose settings or data changed; all of them if none did.
        progress: is told where the run is.

    Raises:
        ValueError: something in the data, the models or the output folder is not as it should be, or the student could
            not be published.
    """
    settings = StageSettings(recipe)
    if recipe.hub is not None and PartialState().is_main_process:
        check_destination(_destination(recipe.hub))
    with open_run(recipe, name, settings, overwrite=overwrite, progress=progress) as run:
        return _results(run)


def publish_student(recipe: Recipe) -> PushResult | None:
    """Publish the student of a finished run where its recipe says; None if it says nothing.

    Raises:
        ValueError: it was not published, and why; the run is whole, and the message has the command that tries again.
    """
    if recipe.hub is None:
        return None
    folder, to = Path(recipe.output_dir).expanduser(), _destination(recipe.hub)
    try:
        return publish(folder, to)
    except ValueError as error:
        command = shlex.join(["hf-distill", "push", str(folder), *to.options()])
        raise ValueError(f"{error}\nthe run is whole, and was not published; to try that again: {command}") from error


def _destination(hub: Hub) -> Destination:
    return Destination(hub.repo_id, private=hub.private, revision=hub.revision, create_pr=hub.create_pr)


def _results(run: Run) -> Results:
    """Go through the run, write results.json and the card."""
    recipe, progress = run.recipe, run.progress
    progress.begin(len(recipe.stage_names()) + 1, {stage: run.expected_steps(stage) for stage in recipe.stage_names()})
    if run.is_finished():
        progress.done("All of it was finished before: these are its results.")
        return Results.read(run.workspace.path)
    about_data = run.prepare(needs_labels=recipe.baseline)
    if PartialState().is_main_process:
        progress.data(*summarize(recipe, run.splits, run.inputs))
    members = run.teachers()
    evaluated = evaluate_teachers(run, members)
    known = teacher_info(run, members)
    teacher = _teacher(run, known, evaluated.together, evaluated.labels)
    generalists = [place for place, info in enumerate(known) if not info["is_specialist"]]
    each = {
        f"teacher-{place + 1}": _teacher(run, [known[place]], logits, evaluated.labels)
        for place, logits in zip(generalists, evaluated.each, strict=False)  # one alone is not measured apart
    }
    members = release_teachers(run, members)
    of_recipe = list(members)
    students: dict[str, ModelResult] = {}
    trained: dict[str, tuple[Section, PreTrainedModel]] = {}
    for stage, section in recipe.student_stages().items():
        model, seconds = run.train_stage(stage, section, members)
        logits, labels = run.predict(model, section)
        _check_finite(stage, logits)
        students[stage] = _measured(run, model, logits, labels, seconds)
        trained[stage] = section, model
        if stage != "student":
            members = [Member(section, model, str(run.workspace.model_folder(stage)), seconds)]
    predicted = {"student": (logits, labels), "teacher": (evaluated.together, evaluated.labels)}
    if recipe.baseline:
        simple, seconds = run.train_stage("baseline", recipe.student, [], members)
        predicted["baseline"] = run.predict(simple, recipe.student)
        _check_finite("baseline", predicted["baseline"][0])
        students["baseline"] = _measured(run, simple, *predicted["baseline"], seconds)
        trained["baseline"] = recipe.student, simple
    predictions = Predictions.of(predicted, run.splits.label_names)
    if PartialState().is_main_process:
        predictions.write(run.workspace.path / PREDICTIONS)
    progress.stage("results", "timing the models side by side")
    students = _with_speed({"teacher": teacher, **students}, speeds(run, of_recipe, trained))
    teacher, student, baseline = students.pop("teacher"), students.pop("student"), students.pop("baseline", None)
    first = next(iter(teacher.metrics))
    results = Results(
        task=recipe.task,
        recipe=run.name,
        teacher=teacher,
        student=student,
        baseline=baseline,
        agreement=agreement(*of_the_same(logits, labels, evaluated.together, evaluated.labels)),
        gap_closed=None
        if baseline is None
        else gap_closed(*(model.metrics[first] for model in (teacher, student, baseline))),
        environment=environment(),
        data=about_data,
        teachers=each,
        stages=students,
        lineage=run.lineage(model),
        curves=run.curves,
        differences=_differences(predicted) if "accuracy" in teacher.metrics else {},
        terms_of_micro_batches=run.settings.of("student").terms_of_micro_batches,
        per_class=per_class(logits, labels, run.splits.label_names),
        thresholds=thresholds(predictions) if predictions.words is None else [],
    )
    if PartialState().is_main_process:
        folder = run.workspace.model_folder("student")
        readme = folder / "README.md"
        made = card_of(recipe, results, training_curves(results), folder=folder, license=license_in(readme))
        write_card(made, readme, folder / PLOT)
        run.workspace.write_results(results.to_json())
    progress.done()
    return results


def _check_finite(stage: str, logits: np.ndarray) -> None:
    """Raise ValueError if a trained student is spoilt: it would be measured, described and published all the same."""
    if not np.isfinite(logits).all():
        raise ValueError(
            f"{stage}: the trained model gives logits that are not finite numbers, so there is no result: most likely "
            "training.learning_rate is too high for it. Change the setting, and pass --overwrite to train it again"
        )


def _with_speed(results: Mapping[str, ModelResult], measured: Mapping[str, Speed]) -> dict[str, ModelResult]:
    return {
        name: replace(result, **measured[name]._asdict()) if name in measured else result
        for name, result in results.items()
    }


def _differences(predicted: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Difference]:
    """Return how much more accurate who is than whom, on the rows that both have predicted."""
    found = {
        f"{one}_{other}": difference(*right_in_the_same(*predicted[one], *predicted[other]))
        for one, other in (("student", "baseline"), ("teacher", "baseline"), ("student", "teacher"))
        if other in predicted
    }
    return {name: value for name, value in found.items() if value is not None}


def _teacher(run: Run, known: Sequence[Mapping[str, Any]], logits: np.ndarray, labels: np.ndarray) -> ModelResult:
    """Measure a teacher, or several together, by what they have evaluated."""
    counts, sizes, seconds = (
        [info[name] for info in known] for name in ("num_parameters", "num_bytes", "train_seconds")
    )
    trained = [each for each in seconds if each is not None]
    return ModelResult(
        metrics=run.metrics(logits, labels),
        num_parameters=None if None in counts else sum(counts),
        size_mib=None if None in sizes else round(sum(sizes) / 2**20, 3),
        train_seconds=round(sum(trained), 3) if trained else None,
    )


def _measured(run: Run, model: PreTrainedModel, logits: np.ndarray, labels: np.ndarray, seconds: float) -> ModelResult:
    parameters = list(model.parameters())
    return ModelResult(
        metrics=run.metrics(logits, labels),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        size_mib=round(sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20, 3),
        train_seconds=seconds,
    )
