"""Export a run's student for ONNX Runtime, and measure the file itself."""

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.latency import Timed, measure_speed
from hf_distill.evaluation.metrics import Metrics
from hf_distill.evaluation.predictions import PREDICTIONS, Predictions
from hf_distill.evaluation.predictor import Collate
from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.models.sources import first_line
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.evaluate import as_read, source_of
from hf_distill.runs.opening import splits_of
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.workspace import finished_stages, write_whole
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.loading import forward_parameters

FOLDER = "onnx"
"""In the student's folder, as in repositories of the Hub."""

_FILES = {"onnx": "model.onnx", "onnx int8": "model_int8.onnx"}
_CLOSE = 1e-3  # the largest difference of a logit between PyTorch and the exported file
_CALIBRATION_ROWS = 256
_BATCH = 32


def export_student(run: Path, *, quantize: bool, max_loss: float, overwrite: bool = False) -> Results:
    """Write a run's student as `student/onnx/model.onnx`, and in 8-bit integers as `model_int8.onnx`.

    The file is run on all evaluation rows by ONNX Runtime. Its logits must be those of PyTorch; of the 8-bit one the
    first metric, and the agreement with the teacher, may be lower by some points. Batches and texts may have any size.

    Args:
        run: the output folder of a finished run.
        quantize: make the 8-bit file, too: of texts with scales found while it runs, of images with scales from 256
            training rows.
        max_loss: points, of 100, that the 8-bit file may lose.
        overwrite: files that are there make room for those of this call.

    Returns:
        the results of the run, with what was measured side by side on the CPU in `exports`.

    Raises:
        ValueError: there is no student, a package is missing, an operator cannot be exported, or the file predicts
            otherwise than the student; nothing is left of it then.
    """
    folder, wanted = run / "student" / FOLDER, ["onnx", "onnx int8"] if quantize else ["onnx"]
    recipe = _checked(run, folder, overwrite=overwrite)
    results = Results.read(run)
    subject = _Subject(recipe, run / "student", "evaluation")
    with tempfile.TemporaryDirectory() as scratch:
        made = {name: Path(scratch, _FILES[name]) for name in wanted}
        _export(subject, made["onnx"])
        predicted = {"student": subject.logits(subject.network), "onnx": subject.logits(_Session(made["onnx"]))}
        difference = float(np.abs(predicted["onnx"] - predicted["student"]).max())
        if not difference <= _CLOSE:
            raise ValueError(f"the exported file's logits differ from the student's by {difference:.1e}, over {_CLOSE}")
        if quantize:
            with _quiet():
                _quantize(recipe, run / "student", made["onnx"], made["onnx int8"])
            predicted["onnx int8"] = subject.logits(_Session(made["onnx int8"]))
        metrics = {name: subject.metrics(logits) for name, logits in predicted.items()}
        if quantize:
            _check_loss(subject, _of_teacher(run, subject), predicted, max_loss)
        models: dict[str, nn.Module] = {"student": subject.network}
        models |= {name: _Session(file) for name, file in made.items()}
        exports = _measured(results, subject, _teacher(recipe, run), models, metrics, made)
        folder.mkdir(exist_ok=True)
        for name in _FILES.values():
            (folder / name).unlink(missing_ok=True)
        for name, file in made.items():
            (folder / _FILES[name]).write_bytes(file.read_bytes())
    found = replace(results, exports=exports)
    write_whole(run / "results.json", found.to_json())
    return found


def _checked(run: Path, folder: Path, *, overwrite: bool) -> Recipe:
    """Return the recipe of a run whose student can be exported into a folder."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"an export needs {error.name}: pip install 'hf_distill[onnx]'") from error
    if "student" not in finished_stages(run) or not (run / "results.json").is_file():
        raise ValueError(f"{run} holds no finished run: name the output_dir of `hf-distill train`")
    there = [name for name in _FILES.values() if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{folder} holds {', '.join(there)}: pass --overwrite to replace it")
    recipe = read_resolved(run / "recipe.yaml")
    if recipe.task == "token-classification":
        raise ValueError("an export is for classifiers of whole rows, and not of words with tags")
    return recipe


class _Subject:
    """A model of a run, and the rows of a split as it reads them."""

    def __init__(self, recipe: Recipe, folder: Path | str, role: str) -> None:
        splits = splits_of(recipe)
        rows = splits.train if role == "train" else splits.evaluation if splits.test is None else splits.test
        self.network: PreTrainedModel = AUTO_CLASSES[recipe.task].from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=recipe.trusts_code_of(recipe.student)
        )
        self.network.eval()
        names = names_in_order(self.network.config.id2label)
        order = [names.index(name) for name in splits.label_names]
        labels = np.asarray(rows.with_format("numpy")["labels"][:])
        self.labels = np.where(labels == MISSING_LABEL, MISSING_LABEL, np.asarray(order)[np.maximum(labels, 0)])
        self.reader, collator = as_read(recipe, str(folder), self.network, rows, splits.columns.inputs)
        self._collate = Collate(collator, {*forward_parameters(self.network), "labels"})
        self._metrics = Metrics(recipe.model_dump()["metrics"], names)

    def batch_of(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return rows as the model takes them."""
        batch = self._collate([self.reader[number] for number in numbers])
        return {name: value for name, value in batch.items() if name != "labels"}

    def batches(self, most: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
        count = len(self.reader) if most is None else min(most, len(self.reader))
        for start in range(0, count, _BATCH):
            yield self.batch_of(range(start, min(start + _BATCH, count)))

    def logits(self, model: nn.Module) -> np.ndarray:
        """Return a model's logits of all rows, `(rows, num_labels)`."""
        with torch.inference_mode():
            return np.concatenate([model(**batch).logits.numpy() for batch in self.batches()])

    def metrics(self, logits: np.ndarray) -> dict[str, float]:
        """Return the recipe's metrics."""
        return dict(self._metrics(logits, self.labels))


class _Session(nn.Module):
    """An exported file as a model: ONNX Runtime on as many threads as PyTorch has."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._names = [each.name for each in self._session.get_inputs()]

    def forward(self, **inputs: torch.Tensor) -> Any:
        (logits,) = self._session.run(["logits"], {name: inputs[name].numpy() for name in self._names})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def _teacher(recipe: Recipe, run: Path) -> _Subject | None:
    """Return the teacher of a run, to be timed; None if it is no single model, or one of other classes."""
    try:
        return _Subject(recipe, source_of(str(run), "teacher")[1], "evaluation")
    except (ValueError, OSError):
        return None


def _export(subject: _Subject, file: Path) -> None:
    """Write a model in single precision, for batches of any size, and texts of any length."""
    import onnx_ir
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    inputs = subject.batch_of(range(min(2, len(subject.reader))) if len(subject.reader) > 1 else [0, 0])
    auto = torch.export.Dim.AUTO
    shapes = {name: {0: auto} if value.dim() == 4 else {0: auto, 1: auto} for name, value in inputs.items()}
    try:
        with _quiet():
            exported: Any = OnnxExporter().export(subject.network, inputs, config=OnnxConfig(dynamic_shapes=shapes))
    except Exception as error:  # of the exporter, which names the operator
        name = type(subject.network).__name__
        raise ValueError(f"{name} cannot be exported: {type(error).__name__}: {first_line(error)}") from error
    for graph in exported.program.graphs():
        for part in (graph, *graph, *graph.initializers.values()):
            part.metadata_props.clear()  # traces of the exporter's calls, with the folders of this machine
            part.doc_string = None
    onnx_ir.save(exported.program, file)


def _of_teacher(run: Path, subject: _Subject) -> np.ndarray | None:
    """Return what the teacher predicts of the evaluation rows, by the student's order of classes."""
    if not (run / PREDICTIONS).is_file():
        return None
    known = Predictions.read(run)
    logits = known.logits.get("teacher")
    if logits is None or len(logits) != len(subject.reader) or np.isnan(logits).any():
        return None
    names = names_in_order(subject.network.config.id2label)
    return np.asarray([names.index(name) for name in known.label_names])[logits.argmax(-1)]


def _quantize(recipe: Recipe, folder: Path, source: Path, file: Path) -> None:
    """Write an exported file in 8-bit integers, each channel with a scale of its own."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    kind = QuantType.QInt8 if _multiplies_signed() else QuantType.QUInt8
    if recipe.is_text:
        quantize_dynamic(source, file, per_channel=True, weight_type=kind)
        return
    subject = _Subject(recipe, folder, "train")

    class Rows(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self._batches = subject.batches(_CALIBRATION_ROWS)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: value.numpy() for name, value in batch.items()}

    quantize_static(
        source,
        file,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=not _multiplies_signed(),
    )


def _multiplies_signed() -> bool:
    """Tell whether the processor multiplies signed 8-bit weights without saturating: by VNNI, or on ARM."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="ignore") if info.exists() else ""
    return os.uname().machine in ("aarch64", "arm64") or "vnni" in text


def _check_loss(
    subject: _Subject, teacher: np.ndarray | None, predicted: Mapping[str, np.ndarray], most: float
) -> None:
    """Raise ValueError if the 8-bit file is worse, or less like the teacher, than the student by more points."""
    found = [subject.metrics(predicted[name]) for name in ("student", "onnx int8")]
    name = next(iter(found[0]))
    values = {name: [each[name] for each in found]}
    if teacher is not None:
        values["agreement with the teacher"] = [
            float(np.mean(predicted[each].argmax(-1) == teacher)) for each in ("student", "onnx int8")
        ]
    lost = [
        f"{what} {after:.4f} ({before:.4f})"
        for what, (before, after) in values.items()
        if 100 * (before - after) > most
    ]
    if lost:
        raise ValueError(
            f"the 8-bit file has {' and '.join(lost)}, in brackets the student's: over {most} points lower "
            "(--max-loss). Nothing was written"
        )


def _measured(
    results: Results,
    subject: _Subject,
    teacher: _Subject | None,
    models: Mapping[str, nn.Module],
    metrics: Mapping[str, Mapping[str, float]],
    files: Mapping[str, Path],
) -> dict[str, ModelResult]:
    """Time teacher, student and files in turns on the CPU."""
    timed = {} if teacher is None else {"teacher": [Timed(teacher.network, teacher.batch_of)]}
    timed |= {name: [Timed(model, subject.batch_of)] for name, model in models.items()}
    speeds = measure_speed(timed, len(subject.reader), torch.device("cpu"), nullcontext)
    found = {}
    for name, speed in speeds.items():
        known = results.teacher if name == "teacher" else results.student
        size = files[name].stat().st_size / 2**20 if name in files else known.size_mib
        values = dict(metrics[name]) if name in metrics else known.metrics
        found[name] = ModelResult(
            values, known.num_parameters, None if size is None else round(size, 3), None, **speed._asdict()
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the terminal what exporter and quantizer tell of their own doings."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
