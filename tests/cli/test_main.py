"""The command line: what it prints, and that a user's mistake is a line to read and costs nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import tiny
import yaml
from PIL import Image

from hf_distill import __version__
from hf_distill.cli import main as cli
from hf_distill.runs.recipe.reading import bundled_recipes

ONE_STEP = {"use_cpu": True, "max_steps": 1, "disable_tqdm": True, "report_to": "none"}
LOADING = ": reading the recipe and loading the libraries\n"
ENTRY_POINT = [sys.executable, "-m", "hf_distill"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-distill", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        out = "".join(line for line in printed.out.splitlines(keepends=True) if not line.endswith(LOADING))
        return int(ended.value.code or 0), out, printed.err

    return run


def save_model(folder: str, label_names: tuple[str, ...] = ("neg", "pos")) -> None:
    names = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}
    tiny.bert(**names).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def write_rows(path: str, *labels) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    name = Path(path).stem  # no text is in two splits
    rows = [{"text": f"a {'good' if i % 2 else 'bad'} {name}", "label": label} for i, label in enumerate(labels)]
    Path(path).write_text("\n".join(map(json.dumps, rows)))


def write_text_recipe(name: str = "x.yaml", **changes) -> dict:
    recipe = {
        "task": "text-classification",
        "data": {"path": "data"},
        "teacher": {"model": "teacher"},
        "student": {"from_teacher": {"layers": [0]}},
        "baseline": False,
        "training": {**ONE_STEP, "allow_untrained_teacher": True},
        "output_dir": "out",
        **changes,
    }
    Path(name).write_text(yaml.safe_dump(recipe))
    return recipe


@pytest.fixture
def text_run(monkeypatch, tmp_path_factory):
    """Lay out a small text recipe, x.yaml, with its ready teacher and data."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    save_model("teacher")
    for split in ("train", "validation"):
        write_rows(f"data/{split}.jsonl", *["neg", "pos"] * 8)
    write_text_recipe()


def files_below(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


class TestEntryPoint:
    def test_help_waits_for_no_library_of_the_training(self):
        """An import at the top of the command line makes every command wait for torch."""
        printed = subprocess.run([*ENTRY_POINT, "--help"], capture_output=True, text=True, check=True).stdout
        assert all(command in printed for command in ("train", "check", "recipes"))
        slow = ["torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "huggingface_hub", "safetensors"]
        slow += ["numpy", "pyarrow", "pandas", "PIL", "sklearn", "scipy", "matplotlib"]
        for arguments in (["--help"], ["recipes", "list"]):
            code = f"import sys; sys.argv = ['hf-distill', *{arguments}]; from hf_distill.cli.main import main\n"
            code += f"try: main()\nexcept SystemExit: sys.exit(', '.join(set({slow}) & set(sys.modules)) or 0)"
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    def test_a_mistake_ends_the_real_program_with_two_and_one_line(self):
        """An exit code of 0 lets a script go on, a traceback hides the line."""
        Path("x.yaml").write_text("task: poetry\n")
        ended = subprocess.run([*ENTRY_POINT, "train", "nowhere.yaml"], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith(
            "error: nowhere.yaml: there is no such file; recipes that come with the package: "
        )
        assert ended.stderr.count("\n") == 1

    @pytest.mark.slow
    def test_a_run_of_the_real_program_prints_a_table_and_writes_the_results(self, text_run):
        """The parts work and the program does not."""
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path("cache").resolve())}
        ended = subprocess.run(
            [*ENTRY_POINT, "train", "x.yaml", "training.temperature=2e0", "data.eval_split=train"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert ended.returncode == 0, ended.stderr
        lines = ended.stdout.splitlines()
        assert any(line.split()[:3] == ["model", "accuracy", "macro"] for line in lines)
        assert any(line.split()[:1] == ["student"] for line in lines)
        assert lines[-6:] == [
            "Next:",
            '  load it   pipeline("text-classification", "out/student")',
            "  look      open out/report.html in a browser",
            "  evaluate  hf-distill evaluate out",
            "  publish   hf-distill push out --repo-id NAME --private",
            "  its card  out/student/README.md",
        ]
        assert "Traceback" not in ended.stderr
        warning = "warning: data: 16 of the 16 rows of the evaluation split (data.eval_split: train) have inputs that "
        assert len([line for line in ended.stderr.splitlines() if line.startswith(warning)]) == 1
        assert "UserWarning" not in ended.stderr
        assert json.loads(Path("out/results.json").read_text())["recipe"] == "x"
        assert yaml.safe_load(Path("out/recipe.yaml").read_text())["training"]["temperature"] == 2.0


@pytest.mark.parametrize("student", [{"from_teacher": {"layers": [1]}}, {"model": "teacher"}])
def test_a_ready_teacher_with_other_names_for_the_labels_in_another_order(run, text_run, student):
    """The map is the teacher's: applied to the student as well, it stops the run after the training."""
    save_model("other", ("+", "-"))
    training = {**ONE_STEP, "allow_untrained_teacher": True, "teacher_label_map": {"neg": "-", "pos": "+"}}
    write_text_recipe(teacher={"model": "other"}, student=student, training=training)
    code, _, err = run("train", "x.yaml")
    assert code == 0, err
    found = json.loads(Path("out/student/config.json").read_text())["id2label"]
    assert found == ({"0": "neg", "1": "pos"} if "model" in student else {"0": "pos", "1": "neg"})


class TestCommands:
    def test_version(self, run):
        """A version that is not the package's."""
        assert run("--version") == (0, f"hf-distill {__version__}\n", "")

    def test_recipes_list_names_each_with_what_it_shows(self, run):
        """A recipe that nobody finds."""
        for arguments in (("recipes", "list"), ("recipes",)):
            code, out, _ = run(*arguments)
            assert code == 0
            assert [line.split()[0] for line in out.splitlines()] == list(bundled_recipes())
            assert all(len(line.split()) > 4 for line in out.splitlines())

    def test_recipes_copy_copies_and_never_replaces(self, run):
        """Changes to an earlier copy would be lost."""
        code, out, _ = run("recipes", "copy", "vision/digits", "mine/recipes")
        copy = Path("mine/recipes/digits.yaml")
        assert (code, out) == (0, f"{copy}\n")
        assert copy.read_text() == bundled_recipes()["vision/digits"].read_text()
        copy.write_text("changed")
        code, _, err = run("recipes", "copy", "vision/digits.yaml", "mine/recipes")
        assert code == 2
        assert err.startswith("error: mine/recipes/digits.yaml exists already: remove it")
        assert copy.read_text() == "changed"

    def test_recipes_copy_of_what_is_not_there_or_to_where_it_cannot_be(self, run):
        """A file named as the folder would be taken for one."""
        code, _, err = run("recipes", "copy", "vision/digit", "mine")
        assert code == 2
        assert err.startswith("error: there is no recipe 'vision/digit'; there are ")
        assert not Path("mine").exists()
        Path("file").write_text("mine")
        code, _, err = run("recipes", "copy", "vision/digits", "file")
        assert code == 2
        assert err.startswith("error: file is a file: name a folder")
        code, _, err = run("recipes", "copy", "vision/digits", "file/below")
        assert code == 2
        assert err.startswith("error: file/below: Not a directory")

    def test_check_prints_the_plan_and_writes_nothing(self, run, text_run):
        """A check that makes the folder that it checks."""
        before = files_below(".")
        code, out, err = run("check", "x.yaml", "training.temperature=2.0", "output_dir=elsewhere")
        odd = [f"warning: data: 14 {role} rows repeat another one" for role in ("train", "evaluation")]
        assert (code, err.splitlines()) == (0, odd)
        for part in ("text-classification", "teacher, ready", "temperature 2.0", "accuracy, f1", "elsewhere, new"):
            assert part in out
        for part in (
            "rows      train 16, evaluation 16",
            "neg (8), pos (8)",
            "each can read a batch",
            "in the way of: hf-",
        ):
            assert part in out
        code, bare, err = run("check", "x.yaml", "training.temperature=2.0", "output_dir=elsewhere", "--no-data")
        assert (code, err) == (0, "")
        assert bare.splitlines() == [*out.split("columns ")[0].splitlines(), "rows      not looked at (--no-data)"]
        assert files_below(".") == before
        assert not Path("elsewhere").exists()

    @pytest.mark.slow
    def test_check_measures_a_few_steps(self, run, text_run):
        """Hours that nobody had expected; or a folder of checkpoints, of what only looked."""
        code, out, _ = run("check", "x.yaml", "training.max_steps=1000", "--measure")
        assert code == 0
        assert re.search(r"time      student: 1,000 steps of [\d.]+ ms, ", out)
        assert "time      all: " in out
        assert not Path("out").exists()

    def test_check_refuses_what_train_would(self, run, text_run):
        """A check that passes, and a run that ends in its first minute."""
        before = files_below(".")
        for override in ("data.text_column=nothing", "student.from_teacher.layers=[7]", "data.max_length=99"):
            code, _, err = run("check", "x.yaml", override)
            of_train = run("train", "x.yaml", override)[2]
            assert code == 2
            assert err.splitlines()[-2:] == of_train.splitlines()[-2:]
        assert files_below(".") == before

    def test_init_check_train_and_evaluate(self, run, text_run):
        """Four commands from a file to predictions, of which one needs what another one has not made."""
        rows = [f"a {'good' if i % 2 else 'bad'} film {i};{'pos' if i % 2 else 'neg'}" for i in range(24)]
        Path("reviews.csv").write_text("\n".join(["text;label", *rows]) + "\n")
        code, out, _ = run("init", "reviews.csv", "--teacher", "teacher")
        assert code == 0
        assert out.splitlines()[-3:] == [
            "reviews.yaml is written. Next:",
            "  hf-distill check reviews.yaml",
            "  hf-distill train reviews.yaml",
        ]
        assert run("init", "reviews.csv")[0] == 2  # it is there
        few = [
            "training={use_cpu: true, max_steps: 2, allow_untrained_teacher: true}",
            "student.from_teacher.layers=[0]",
        ]
        assert run("check", "reviews.yaml", *few)[0] == 0
        assert run("train", "reviews.yaml", *few, "--quiet")[0] == 0
        code, out, _ = run("evaluate", "runs/reviews", "--data", "reviews.csv", "--output", "p.csv")
        assert code == 0
        assert "student of runs/reviews on reviews.csv: 24 rows, 24 labels" in out
        assert len(Path("p.csv").read_text().splitlines()) == 25
        code, _, err = run("evaluate", "runs/reviews", "--data", "reviews.csv", "--output", "p.csv")
        assert code == 2
        assert err.startswith("error: --output: p.csv is there")
        self.look_at(run, "runs/reviews")

    @staticmethod
    def look_at(run, folder: str) -> None:
        """Evaluate a run without data, with another model beside its own, and a model that is no run's."""
        found = json.loads(Path(folder, "results.json").read_text())
        code, out, _ = run("evaluate", folder, "--json")
        told = json.loads(out)
        assert code == 0
        for name in ("teacher", "student", "baseline"):
            assert told["measures"][name]["accuracy"]["value"] == pytest.approx(found[name]["metrics"]["accuracy"])
            assert told["costs"][name]["latency_ms"] == found[name]["latency_ms"]
        assert told["measures"]["student"]["agreement"]["value"] == pytest.approx(found["agreement"])
        assert [each["target"] for each in told["thresholds"]] == [0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
        code, out, _ = run("evaluate", folder, "--target", "0.7")
        assert code == 0
        assert {"accuracy", "NLL", "Brier", "ECE,"} <= {line.split()[0] for line in out.splitlines() if line}
        assert "70.0%" in out
        assert max(map(len, out.splitlines())) <= 80
        code, out, _ = run("evaluate", folder, "--data", "reviews.csv", "--against", "teacher", "--json")
        told = json.loads(out)
        assert code == 0
        assert set(told["measures"]["student"]) > {"accuracy", "agreement", "kl"}
        assert told["costs"]["teacher"]["flops"] > told["costs"]["student"]["flops"] > 0
        code, out, _ = run("evaluate", f"{folder}/student", "--data", "reviews.csv", "--output", "p.parquet", "--json")
        assert json.loads(out)["measures"]["student"]["accuracy"] == told["measures"]["student"]["accuracy"]
        table = datasets.Dataset.from_parquet("p.parquet", cache_dir="cache")
        assert table.column_names == ["row", "text", "label", "prediction", "probability_neg", "probability_pos"]
        for options, message in (
            (["--against", "teacher"], "--against: belongs to new data: name them, --data PATH"),
            (["--data", "reviews.csv", "--target", "0.9"], "--target: is for the evaluation rows of a run"),
            (["--target", "90"], "targets must be above 0 and below 1"),
            (["--data", "reviews.csv", "--output", "p.txt"], "--output: expected a file that ends in .csv or .parquet"),
        ):
            code, _, err = run("evaluate", folder, *options)
            assert code == 2
            assert err.startswith(f"error: {message}")
        assert "reviews.csv holds neither a run" in run("evaluate", "./reviews.csv", "--data", "reviews.csv")[2]
        assert "reviews.csv is no folder of a run" in run("evaluate", "reviews.csv")[2]
        code, out, _ = run("report", folder)
        assert code == 0
        assert out == f"The report is in {folder}/report.html.\n"
        text = Path(folder, "report.html").read_text()
        assert "good film" in text or "bad film" in text
        assert {"trade_offs.png", "reliability.png"} <= {each.name for each in Path(folder, "report").iterdir()}
        assert run("report", folder, folder, "--output", "both.html")[0] == 0
        assert "2 runs" in Path("both.html").read_text()
        for arguments, message in (
            ((folder, folder), "--output: name the page of several runs"),
            ((folder, "--output", "x.pdf"), "--output: expected a file that ends in .html"),
            (("nowhere",), "nowhere holds no finished run, it has no recipe.yaml"),
        ):
            code, _, err = run("report", *arguments)
            assert code == 2
            assert err.startswith(f"error: {message}")
        Path("reviews.csv").rename("gone.csv")
        assert run("report", folder)[0] == 0
        assert "the data cannot be opened" in Path(folder, "report.html").read_text()
        Path(folder, "predictions.parquet").unlink()
        assert "has no predictions.parquet" in run("evaluate", folder)[2]

    def test_a_finished_run_says_so_at_once(self, run, text_run, monkeypatch):
        """Ten minutes of evaluation, to print a table that is on the disk."""
        code, first, _ = run("train", "x.yaml")
        assert code == 0
        monkeypatch.setattr("hf_distill.runs.train.evaluate_teachers", None)
        code, second, _ = run("train", "x.yaml", "training.logging_steps=5")
        assert code == 0
        assert "All of it was finished before: these are its results." in second
        assert second.split("results.\n")[1] == "model" + first.split("\nmodel")[1]

    @pytest.mark.slow
    def test_stopped_by_hand_it_says_where_and_ends_with_130(self, text_run):
        """A traceback of the data loader's depths, and no word about what is left of the night."""
        many = ["training.max_steps=20000"]
        environment = {**os.environ, "HF_DATASETS_CACHE": str(Path("cache").resolve()), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [*ENTRY_POINT, "train", "x.yaml", *many],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
        ) as process:
            for line in process.stdout:
                if "student: " in line:
                    break
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            err = process.stderr.read()
        assert process.returncode == 130
        assert re.search(r"stopped in stage student at [\d,]+ of 20,000 steps", err)
        assert "Traceback" not in err

    def test_messages_of_python_are_in_the_words_of_recipes(self, run, text_run, monkeypatch):
        """A keyword of Python, for one who has a YAML file."""

        def fails(*_: object, **__: object) -> None:
            raise ValueError("it is untrained: set allow_untrained_teacher=True, or top_k=True of another")

        monkeypatch.setattr("hf_distill.runs.train.distill", fails)
        line = run("train", "x.yaml")[2].splitlines()[0]
        assert line == "error: it is untrained: set training.allow_untrained_teacher=true, or top_k=True of another"

    def test_an_error_of_a_library_is_one_line(self, run, text_run, monkeypatch):
        """Forty lines of a library's depths for a mistake of the user's, or of ours."""

        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("shape mismatch\nand forty more lines")

        monkeypatch.setattr("hf_distill.runs.train.distill", fails)
        code, _, err = run("train", "x.yaml")
        assert (code, err.splitlines()) == (
            2,
            ["error: RuntimeError: shape mismatch", "(--debug shows where it happened)"],
        )
        assert "Traceback" in run("train", "x.yaml", "--debug")[2]

    def test_check_of_a_recipe_with_problems_shows_all_of_them(self, run, text_run):
        """One start of the program for each problem."""
        code, out, err = run("check", "x.yaml", "training.alpha=2", "training.temperature=-1", "nope=1")
        assert (code, out) == (2, "")
        assert [line.split(": ")[2] for line in err.splitlines()] == ["nope", "training.alpha", "training.temperature"]


class TestBadInput:
    def refused(self, run, *arguments: str) -> list[str]:
        """Run `train` with a mistake and return its lines, having seen to all that goes for every mistake."""
        before = files_below(".")
        code, printed, err = run("train", *arguments)
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert code == 2
        assert printed == ""
        assert 1 <= len(lines) <= 2
        assert "Traceback" not in err
        assert all(len(line) < 400 for line in lines)
        assert files_below(".") == before
        return [line.removeprefix("error: ") for line in lines]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("trainin.alpha=0.3", "x.yaml: trainin: unknown key; did you mean training?"),
            ("training.temperature=-1", "x.yaml: training.temperature: must be > 0, got -1. 1 to 20 is usual."),
            (
                "training.alpha=2",
                "x.yaml: training.alpha: must be in [0, 1], got 2. It is the weight of the label loss",
            ),
            (
                "training={learning_rate: 3e-4}",
                "x.yaml: training.learning_rate: expected a valid number, got '3e-4' as",
            ),
            (
                "training.per_device_train_batch_size=0",
                "x.yaml: training.per_device_train_batch_size: must be > 0, got",
            ),
            ("data.path=nowhere", "data: cannot read nowhere: there is no such file or folder"),
            ("data.text_column=sentence", "data.text_column: the data have no column 'sentence', only text, label"),
            ("data.label_column=gold", "data.label_column: the data have no column 'gold', only text, label"),
            ("data.eval_split=dev", "data.eval_split: the data have no split 'dev', only train, validation"),
            ("data.train_split=train[:0]", "data.train_split: split 'train[:0]' has no rows, train has 16"),
            ("teacher.model=nowhere", "cannot load the teacher 'nowhere': "),
            ("student.model=nowhere", "cannot load the model 'nowhere': "),
            ("student.config={model_type: brt}", "config.model_type 'brt' is not one that Transformers knows"),
            ("student.from_teacher.layers=[7]", "from_teacher.layers must name some of the teacher's layers 0 to 1"),
            ("metrics=[acuracy]", "x.yaml: metrics.0: acuracy is Python code of others (on the Hub, in the Space "),
            ("output_dir=x.yaml", "output_dir: cannot write to x.yaml: File exists. Choose another folder."),
            (
                "output_dir=x.yaml/run",
                "output_dir: cannot write to x.yaml/run: Not a directory. Choose another folder.",
            ),
        ],
    )
    def test_a_wrong_setting_is_named_and_nothing_is_written(self, run, text_run, override, message):
        """Found out after hours, in a traceback, or with a half-filled folder that refuses the corrected recipe."""
        (line,) = self.refused(run, "x.yaml", override)
        assert line.startswith(message)
        assert not Path("out").exists()

    @pytest.mark.parametrize("name", ["nowhere.yaml", "vision/digit"])
    def test_a_recipe_that_is_not_there(self, run, name):
        """The remedy: the names of those that there are."""
        (line,) = self.refused(run, name)
        assert line.startswith(f"{name}: there is no such file; recipes that come with the package: ")

    @pytest.mark.parametrize("student", [{"from_teacher": {"layers": [0]}}, {"model": "teacher"}])
    def test_a_ready_teacher_with_another_number_of_labels(self, run, text_run, student):
        """Its soft targets are of other classes."""
        save_model("three", ("neg", "pos", "mixed"))
        write_text_recipe(teacher={"model": "three"}, student=student)
        (line,) = self.refused(run, "x.yaml")
        assert line.startswith("the teacher has 3 labels, the student 2. Teacher: ['neg', 'pos', 'mixed']; student: ")
        assert "teacher_label_map" in line
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["neg", "1"] * 8, "data.label_column 'label' mixes numbers (1) and text (neg): make them one"),
            (["neg", 1] * 8, "data.label_column 'label' holds values of several types ('neg', 1): expected one label"),
            ([0.5, 0.7] * 8, "data.label_column 'label' holds float64: expected one label in each row"),
            (
                ["neg"] * 16,
                "data.label_column 'label' has too few classes in the train split (neg): a classifier needs",
            ),
        ],
    )
    def test_labels_that_no_classifier_has(self, run, text_run, labels, message):
        """A class that is none."""
        for split in ("train", "validation"):
            write_rows(f"data/{split}.jsonl", *labels)
        (line,) = self.refused(run, "x.yaml")
        assert line.startswith(message)

    def test_a_file_of_data_that_cannot_be_read(self, run, text_run):
        """A traceback of pyarrow."""
        Path("x.parquet").write_bytes(b"no parquet")
        (line,) = self.refused(run, "x.yaml", "data.path=x.parquet")
        assert line.startswith("data: cannot read x.parquet: Parquet magic bytes not found")

    def test_an_image_that_cannot_be_read(self, run, monkeypatch, tmp_path_factory):
        """Found out in the middle of the first epoch, with no word about which image it is."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        for number, name in enumerate(("train/cat/1", "train/dog/2", "train/dog/3", "test/cat/4", "test/dog/5")):
            Path(f"images/{name}.png").parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(f"images/{name}.png")
        whole = Path("images/train/dog/3.png").read_bytes()
        Path("images/train/dog/3.png").write_bytes(whole[:40])
        shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 3, "hidden_sizes": [4]}
        write_text_recipe(
            task="image-classification",
            data={"path": "images"},
            teacher={"config": shape, "training": ONE_STEP},
            student={"config": shape},
        )
        line, which = self.refused(run, "x.yaml")
        assert line.startswith("data: 1 of the images cannot be read")
        assert which.startswith("row 2 (")
        assert "images/train/dog/3.png) of the train split: " in which
        assert not Path("out").exists()

    def test_a_folder_with_another_run_and_a_mistake_in_the_new_recipe(self, run, text_run):
        """`--overwrite` with a mistake in the recipe would cost the old run."""
        assert run("train", "x.yaml")[0] == 0
        (line,) = self.refused(run, "x.yaml", "training.temperature=8.0")
        assert line.startswith("output_dir: out holds a run with other settings (training.temperature: 4.0 -> 8.0)")
        (line,) = self.refused(run, "x.yaml", "data.text_column=sentence", "--overwrite")
        assert line.startswith("data.text_column: the data have no column 'sentence'")
        (line,) = self.refused(run, "x.yaml", "student.from_teacher.layers=[7]", "--overwrite")
        assert line.startswith("from_teacher.layers")

    def test_debug_shows_where_it_happened_and_is_mentioned_without(self, run, text_run):
        """Without it nobody can report a bug, and nobody knows of it."""
        mistake = "data.text_column=sentence"
        code, _, err = run("train", "x.yaml", mistake, "--debug")
        assert code == 2
        assert "Traceback (most recent call last)" in err
        assert "find_columns" in err
        assert err.splitlines()[-1].startswith("error: data.text_column: ")
        assert run("train", "x.yaml", mistake)[2].splitlines()[-1] == "(--debug shows where it happened)"
