"""A student as a file for ONNX Runtime: it predicts what the student does, or there is no file."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
import yaml
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from hf_distill.evaluation.results import Results
from hf_distill.hub.files import student_files
from hf_distill.runs import export as module
from hf_distill.runs.export import export_student
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.report import write_report
from hf_distill.runs.run_card import save_card
from hf_distill.runs.train import distill

CPU = {"use_cpu": True, "report_to": "none", "max_steps": 2}


def train(**sections) -> Path:
    settings = {"training": {**CPU, "allow_untrained_teacher": True}, "output_dir": "run", "baseline": False}
    Path("x.yaml").write_text(yaml.safe_dump({**settings, **sections}))
    distill(load_recipe("x.yaml"), "x")
    return Path("run")


@pytest.fixture
def text_run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.bert(id2label={0: "neg", 1: "pos"}).save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    rows = [f"{'good' if i % 2 else 'bad'} {'film ' * (1 + i // 2)};{'pos' if i % 2 else 'neg'}" for i in range(40)]
    Path("x.csv").write_text("\n".join(["text;label", *rows]) + "\n")
    return train(
        task="text-classification",
        data={"path": "x.csv", "train_split": "train[:20]", "eval_split": "train[20:]", "max_length": 16},
        teacher={"model": "model", "training": {"report_to": "none", "max_steps": 2}},
        student={"from_teacher": {"layers": [0]}},
    )


@pytest.mark.slow
def test_the_files_are_those_that_were_measured(text_run):
    """Figures of PyTorch for a file of ONNX Runtime, or a file that takes the exporter's batch alone."""
    found = export_student(text_run, quantize=True, max_loss=100)
    assert list(found.exports) == ["teacher", "student", "onnx", "onnx int8"]
    assert Results.read(text_run) == found
    folder = text_run / "student" / "onnx"
    for name, file in (("onnx", "model.onnx"), ("onnx int8", "model_int8.onnx")):
        assert found.exports[name].size_mib == pytest.approx((folder / file).stat().st_size / 2**20, abs=1e-3)
        assert found.exports[name].latency_ms > 0
        assert b"site-packages" not in (folder / file).read_bytes()  # of the exporter's traces
    assert found.exports["onnx"].metrics == pytest.approx(found.student.metrics)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(text_run / "student")
    model = AutoModelForSequenceClassification.from_pretrained(text_run / "student").eval()
    for texts in (["good"], ["bad film film film film", "film"] * 3):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        taken = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
        assert np.abs(session.run(["logits"], taken)[0] - expected).max() < 1e-5
    assert {"onnx/model.onnx", "onnx/model_int8.onnx"} <= {
        each.path_in_repo for each in student_files(text_run / "student")
    }
    with pytest.raises(ValueError, match=r"holds model\.onnx, model_int8\.onnx: pass --overwrite"):
        export_student(text_run, quantize=False, max_loss=0.5)
    write_report([text_run])
    assert "From the teacher to the file onnx int8, on a CPU: " in (text_run / "report.html").read_text()
    save_card(text_run)
    assert "to the file onnx int8, on a CPU: " in (text_run / "student" / "README.md").read_text()


@pytest.mark.slow
def test_a_file_that_predicts_otherwise_is_refused_and_leaves_nothing(text_run, monkeypatch):
    """A broken file that is published with the student's figures."""
    before = (text_run / "results.json").read_text()
    whole = module._Session.forward

    def shifted(self, **inputs):
        found = whole(self, **inputs)
        found.logits = found.logits.flip(-1) + 0.01
        return found

    monkeypatch.setattr(module._Session, "forward", shifted)
    with pytest.raises(ValueError, match=r"logits differ from the student's by .*, over 0\.001"):
        export_student(text_run, quantize=False, max_loss=0.5)
    monkeypatch.setattr(module, "_CLOSE", 1e9)
    with pytest.raises(ValueError, match=r"the 8-bit file has .*: over 0\.5 points lower \(--max-loss\)"):
        export_student(text_run, quantize=True, max_loss=0.5)
    assert not (text_run / "student" / "onnx").exists()
    assert (text_run / "results.json").read_text() == before


@pytest.mark.slow
def test_a_convolutional_student_is_exported_with_scales_of_training_rows(tmp_path, monkeypatch, capfd):
    """An 8-bit net of images whose scales are found anew for each image, and is slower than the whole one."""
    monkeypatch.chdir(tmp_path)
    net = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2}
    run = train(
        task="image-classification",
        data={"dataset": "sklearn:digits", "eval_split": "test", "processor": {"size": {"height": 8, "width": 8}}},
        teacher={"config": net, "training": {"report_to": "none", "max_steps": 2}},
        student={"config": net},
    )
    capfd.readouterr()
    found = export_student(run, quantize=True, max_loss=100)
    out, err = capfd.readouterr()
    assert out == ""
    assert "torch" not in err
    assert "WARNING" not in err
    names = {node.op_type for node in onnx.load(run / "student" / "onnx" / "model_int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= names
    assert found.exports["onnx int8"].metrics["accuracy"] == pytest.approx(found.student.metrics["accuracy"], abs=0.1)
    session = onnxruntime.InferenceSession(run / "student" / "onnx" / "model.onnx")
    model = AutoModelForImageClassification.from_pretrained(run / "student").eval()
    pixels = torch.rand(3, model.config.num_channels, 8, 8)
    with torch.no_grad():
        expected = model(pixels).logits.numpy()
    assert np.abs(session.run(["logits"], {"pixel_values": pixels.numpy()})[0] - expected).max() < 1e-4


def test_what_cannot_be_exported_is_refused(tmp_path):
    """A traceback for a folder that is no run."""
    with pytest.raises(ValueError, match="holds no finished run"):
        export_student(tmp_path, quantize=False, max_loss=0.5)


@pytest.mark.slow
def test_the_command_prints_what_was_measured(text_run, monkeypatch, capsys):
    """A file without a figure."""
    from hf_distill.cli import main as cli

    for arguments in (["--max-loss", "100", "--quantize", "int8"], ["--overwrite", "--json"]):
        monkeypatch.setattr("sys.argv", ["hf-distill", "export", "run", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        out = capsys.readouterr().out
        if "--json" in arguments:
            assert list(json.loads(out)) == ["teacher", "student", "onnx"]
            assert [each.name for each in Path("run/student/onnx").iterdir()] == ["model.onnx"]
        else:
            assert {"teacher", "student", "onnx"} <= {line.split(" ")[0] for line in out.splitlines()}
            assert "onnx files are in run/student/onnx." in out
            assert max(map(len, out.splitlines()[:6])) <= 80
