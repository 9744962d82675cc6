"""`hf-distill card`: the card of a finished run, made anew."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hf_distill.cli import main as cli
from hf_distill.evaluation.curves import PLOT
from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.hub.readme import BEGIN
from hf_distill.runs.recipe.reading import load_recipe, to_yaml
from tests.evaluation.test_curves import CURVES
from tests.evaluation.test_results import results

RECIPE = {
    "task": "text-classification",
    "data": {"path": "/home/lovelace/secret/reviews", "eval_split": "test"},
    "teacher": {"model": "/home/lovelace/secret/teacher"},
    "student": {"from_teacher": {"layers": [0]}},
    "output_dir": "/home/lovelace/secret/out",
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs `hf-distill card`: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-distill", "card", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def folder() -> Path:
    """Lay out what a run leaves, as far as a card needs it."""
    Path("mine.yaml").write_text(yaml.safe_dump(RECIPE))
    (Path("out") / "student").mkdir(parents=True)
    Path("out/recipe.yaml").write_text("# Written by hf-distill\n" + to_yaml(load_recipe("mine.yaml")))
    origin = {"model": None, "revision": None, "license": "cc-by-nc-4.0", "seed": None}
    lineage = {"teachers": [origin], "student": origin, "dataset": {"id": None, "revision": None}}
    found = results()
    found = replace(
        found,
        recipe="mine",
        data={**found.data, "num_eval_rows": 100},
        teacher=ModelResult(found.teacher.metrics, 1000, 0.5, None),
        lineage=lineage,
        curves=CURVES,
    )
    Path("out/results.json").write_text(found.to_json())
    return Path("out")


def below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_goes_into_the_students_readme_and_nothing_else_is_touched(run, folder):
    """A card in a folder where nobody looks, or results that change by looking at them."""
    before = below(folder)
    code, printed, error = run(folder)
    assert (code, printed, error) == (0, "out/student/README.md\n", "")
    after = below(folder)
    assert set(after) - set(before) == {"student/README.md", f"student/{PLOT}"}
    assert {name: after[name] for name in before} == before
    assert f"]({PLOT})" in after["student/README.md"].decode()
    assert run(folder)[0] == 0
    assert below(folder) == after


def test_the_users_text_and_license_stay(run, folder):
    """What somebody has written beside the card, gone when the card is made again."""
    readme = folder / "student" / "README.md"
    readme.write_bytes(b"---\r\nlicense: cc-by-nc-sa-4.0\r\n---\r\n# Mine\r\n")
    assert run(folder)[0] == 0
    written = readme.read_bytes()
    assert b"\r\nlicense: cc-by-nc-sa-4.0\r\n" in written
    assert b"---\r\n# Mine\r\n\r\n" + BEGIN.encode() in written
    assert b"## License\r\n\r\n`cc-by-nc-sa-4.0`." in written


def test_the_repository_is_named_in_title_and_snippets(run, folder):
    """Snippets with somebody else's name in them."""
    assert run(folder, "--repo-id", "lovelace/tiny")[0] == 0
    text = (folder / "student" / "README.md").read_text()
    assert "\n# tiny: text classifier for " in text
    assert 'from_pretrained("lovelace/tiny")' in text
    assert "- name: tiny\n" in text


def test_a_license_that_forbids_is_a_warning(run, folder):
    """A line in the card alone is read when the model is out."""
    (folder / "student" / "README.md").write_text("---\nlicense: mit\n---\n")
    code, _, error = run(folder)
    assert code == 0
    assert error.startswith("warning: teacher `teacher`: cc-by-nc-4.0 does not allow commercial use")
    assert error.count("\n") == 1


def test_an_exported_card_brings_what_it_was_made_from(run, folder):
    """A published card that nobody can make again."""
    code, printed, _ = run(folder, "--output", "cards/mine.md")
    assert (code, printed) == (0, "cards/mine.md\n")
    assert set(below(Path("cards"))) == {"mine.md", "mine/recipe.yaml", "mine/results.json", f"mine/{PLOT}"}
    assert f"](mine/{PLOT})" in Path("cards/mine.md").read_text()
    for content in below(Path("cards")).values():
        assert b"secret" not in content
        assert b"lovelace" not in content
    assert Results.read(Path("cards/mine")) == Results.read(folder)
    assert yaml.safe_load(Path("cards/mine/recipe.yaml").read_text())["teacher"]["model"] == "teacher"


def test_from_an_exported_folder_the_same_card_is_made(run, folder):
    """A card whose text depends on where its run lay."""
    run(folder, "--output", "cards/mine.md")
    first = below(Path("cards"))
    assert run("cards/mine", "--output", "cards/mine.md")[0] == 0
    assert below(Path("cards")) == first
    assert run("cards/mine", "--output", "elsewhere/mine.md")[0] == 0
    assert below(Path("elsewhere")) == first


def test_results_from_before_lineage_make_the_same_card_from_an_exported_folder(run, folder):
    """`teacher`, which is left of a path, taken for a model on the Hub."""
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**found, "lineage": {}}))
    run(folder, "--output", "cards/mine.md")
    first = below(Path("cards"))
    assert b"base_model:" not in first["mine.md"]
    assert run("cards/mine", "--output", "cards/mine.md")[0] == 0
    assert below(Path("cards")) == first


def test_a_picture_without_curves_is_taken_away(run, folder):
    """The picture of an earlier run beside a card of this one."""
    run(folder)
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**found, "curves": {}}))
    assert run(folder)[0] == 0
    assert not (folder / "student" / PLOT).exists()
    assert PLOT not in (folder / "student" / "README.md").read_text()


class TestMistakes:
    def test_a_folder_that_is_no_finished_run(self, run, folder):
        """A FileNotFoundError with a traceback."""
        (folder / "results.json").unlink()
        code, _, error = run(folder)
        assert code == 2
        assert "error: out holds no finished run: it has no results.json. Name the output_dir" in error
        assert run("nowhere")[0] == 2

    def test_a_run_without_a_student(self, run, folder):
        """A card in a folder that is made for it, and no model there."""
        (folder / "student").rmdir()
        code, _, error = run(folder)
        assert code == 2
        assert "name the file for the card, --output FILE.md" in error
        assert not (folder / "student").exists()

    def test_an_output_that_is_no_markdown(self, run, folder):
        """`--output cards`, and a file without an end in the place of a folder."""
        code, _, error = run(folder, "--output", "cards")
        assert code == 2
        assert "expected a file that ends in .md, got cards" in error
        assert not Path("cards").exists()

    def test_what_it_was_made_from_goes_over_nothing_else(self, run, folder):
        """`--output RUN.md` replaced the run's own recipe.yaml by the one without local paths."""
        before = (folder / "recipe.yaml").read_bytes()
        code, _, error = run(folder, "--output", "out.md")
        assert code == 2
        assert "go into the folder out, which is something else (student): choose another name" in error
        assert (folder / "recipe.yaml").read_bytes() == before
        Path("mine").mkdir()
        Path("mine/recipe.yaml").write_text("mine")
        assert run(folder, "--output", "mine.md")[0] == 2
        assert Path("mine/recipe.yaml").read_text() == "mine"
        assert not Path("mine.md").exists()

    def test_results_of_another_version(self, run, folder):
        """A KeyError where a line would do."""
        (folder / "results.json").write_text("{}")
        code, _, error = run(folder)
        assert code == 2
        assert "error: out: results.json was not written by a run of this version" in error

    @pytest.mark.parametrize("text", [b"\xff\xfe", f"{BEGIN}\n".encode(), b"---\n- a\n---\n"])
    def test_a_readme_that_cannot_be_merged_is_left_alone(self, run, folder, text):
        """Half a README, or the user's text replaced."""
        readme = folder / "student" / "README.md"
        readme.write_bytes(text)
        code, _, error = run(folder)
        assert code == 2
        assert "README.md" in error
        assert below(folder / "student") == {"README.md": text}
        Path("mine.md").write_bytes(text)
        assert run(folder, "--output", "mine.md")[0] == 2
        assert Path("mine.md").read_bytes() == text
        assert not Path("mine").exists()


def test_help_is_fast_and_a_card_of_ones_own_recipe_needs_no_torch(folder):
    """Seconds of imports for a file of text."""
    code = (
        "import sys; sys.argv = ['hf-distill', 'card', *sys.argv[1:]]; from hf_distill.cli.main import main\n"
        "try: main()\nexcept SystemExit: sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    for arguments in (["--help"], [str(folder)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
