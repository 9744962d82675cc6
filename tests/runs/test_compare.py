"""Student and baseline over folds and seeds, with one teacher a fold."""

import json
from pathlib import Path

import pytest
import tiny
import yaml

from hf_distill.evaluation.results import Results
from hf_distill.runs.compare import Plan, compare_recipe

CPU = {"use_cpu": True, "report_to": "none", "max_steps": 2, "allow_untrained_teacher": True}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.bert(id2label={0: "neg", 1: "pos"}).save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    rows = [f"{'good' if i % 2 else 'bad'} {'film ' * (1 + i // 2)};{'pos' if i % 2 else 'neg'}" for i in range(24)]
    Path("x.csv").write_text("\n".join(["text;label", *rows]) + "\n")
    settings = {
        "task": "text-classification",
        "data": {"path": "x.csv", "train_split": "train[:20]", "eval_split": "train[20:]", "max_length": 16},
        "teacher": {"model": "model", "training": {"report_to": "none", "max_steps": 2}},
        "student": {"from_teacher": {"layers": [0]}},
        "training": {**CPU, "precompute_teacher_logits": True},
        "output_dir": "out",
    }
    Path("x.yaml").write_text(yaml.safe_dump(settings))
    return "x.yaml"


@pytest.mark.slow
def test_each_fold_has_one_teacher_and_a_stopped_comparison_goes_on(recipe, monkeypatch):
    """A teacher for each seed, rows in two folds, or an hour of training done again."""
    told: list[str] = []
    import hf_distill.runs.compare as module

    whole, calls = module.distill, []

    def stopping(of_run, name, **options):
        calls.append(of_run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(of_run, name, **options)

    monkeypatch.setattr(module, "distill", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare_recipe(recipe, [], Plan(2, 2), tell=told.append)
    (found,), folder = compare_recipe(recipe, [], Plan(2, 2), tell=told.append)
    assert len(calls) == 5
    assert sum("teacher" in line for line in told) == 3  # the second one is opened again
    assert folder == Path("out_compare")
    written = json.loads((folder / "comparison.json").read_text())
    assert [(run["fold"], run["seed"]) for run in written["runs"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for run in written["runs"]:
        results = Results.read(folder / f"fold-{run['fold']}" / f"seed-{run['seed']}")
        assert run["accuracy"]["student"] == pytest.approx(results.student.metrics["accuracy"])
        assert (results.data["num_train_rows"], results.data["num_eval_rows"]) == (10, 10)
        assert results.data["label_names"] == ["neg", "pos"]
    teachers = [Results.read(folder / "fold-1" / f"seed-{seed}").teacher.metrics for seed in (0, 1)]
    assert teachers[0] == teachers[1]
    assert written["comparisons"][0]["verdict"] == found.verdict
    monkeypatch.setattr(module, "distill", None)
    again, _ = compare_recipe(recipe, [], Plan(2, 2))
    assert again == [found]
    with pytest.raises(ValueError, match="out_compare holds another comparison"):
        compare_recipe(recipe, [], Plan(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "rows", "labels", "folder"),
    [
        (Plan(0, 2, label_budgets=(4, 8)), 20, (4, 8), "labels-4/seed-1"),
        (Plan(2, 1, train_fraction=0.4), 4, (4,), "fold-2/seed-0"),
    ],
)
def test_the_student_has_fewer_rows_or_labels_than_its_teacher(recipe, plan, rows, labels, folder):
    """A teacher of few labels, too, or a student that has them all."""
    found, out = compare_recipe(recipe, [], plan)
    assert tuple(each.num_labels for each in found) == labels
    results = Results.read(out / folder)
    assert results.data["num_train_rows"] == rows
    assert results.data["unlabelled_share"] == pytest.approx(1 - labels[0] / rows)
    assert results.data["num_eval_rows"] == (10 if plan.folds else 4)
    written = json.loads((out / "comparison.json").read_text())
    assert [each["label_budget"] for each in written["comparisons"]] == list(plan.label_budgets or [None])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(0, 1), "there is nothing to compare: give 2 or more --folds"),
        (Plan(1, 3), "there is nothing to compare"),
        (Plan(11, 1), "--folds 11: class 0 has 10 rows"),
        (Plan(2, 1, train_fraction=1.5), "--train-fraction: expected a number above 0 and below 1, got 1.5"),
        (Plan(2, 1, 0.5, (3,)), "both choose the student's rows"),
        (Plan(0, 2, label_budgets=(40,)), r"--label-budgets 40: .*20 labelled rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(recipe, plan, message):
    """An error after the first teacher has been trained."""
    with pytest.raises(ValueError, match=message):
        compare_recipe(recipe, [], plan)
    assert not Path("out_compare").exists()  # another plan may follow


def test_the_command_prints_a_table_and_a_verdict(recipe, monkeypatch, capsys):
    """Figures that nobody can read."""
    from hf_distill.cli import main as cli
    from hf_distill.evaluation.comparison import Comparison

    found = Comparison(
        20, *[dict.fromkeys(("teacher", "student", "baseline"), 0.5)] * 2, 0.02, 0.01, 0.01, 0.03, 4, 0.01, "BETTER"
    )
    given = []

    def compare(source, overrides, plan, **_):
        given.append(plan)
        return [found], Path("out_compare")

    monkeypatch.setattr("hf_distill.runs.compare.compare_recipe", compare)
    monkeypatch.setattr("sys.argv", ["hf-distill", "compare", "x.yaml", "--folds", "5", "--label-budgets", "3,9"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert given == [Plan(5, 1, None, (3, 9))]
    assert "BETTER: the student's accuracy is 2.00 points above its baseline's (95% interval +1.00 to +3.00)." in out
    assert max(map(len, out.splitlines()[:4])) <= 80
