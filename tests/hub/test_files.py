"""What of a run goes out."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from pushing import state
from safetensors.torch import load_file, save_file

from hf_distill.evaluation.results import Results
from hf_distill.hub.destination import Destination
from hf_distill.hub.files import Outgoing, left_over
from hf_distill.hub.readme import combined, merge
from hf_distill.runs.publish import outgoing
from hf_distill.runs.recipe.reading import read_resolved
from hf_distill.runs.run_card import card_of_run

pytest_plugins = ["pushing_fixture"]
pytestmark = pytest.mark.usefixtures("left_alone", "no_waiting")

WHOLE = {
    *("README.md", "config.json", "mlp.py", "model.safetensors", "preprocessor_config.json"),
    *("recipe.yaml", "results.json", "training_curves.png"),
}


def collect(run: Path) -> list[Outgoing]:
    return outgoing(run, Destination("ada/digits"))


def names(run: Path) -> set[str]:
    return {file.path_in_repo for file in collect(run)}


def test_the_student_its_card_and_what_made_it_go_out(trained):
    """A repository that cannot be loaded, or whose figures nobody can check."""
    before = state(trained)
    files = {file.path_in_repo: file for file in outgoing(trained, Destination("ada/digits"))}
    assert set(files) == WHOLE
    assert files["model.safetensors"].content == trained / "student" / "model.safetensors"  # from the disk, not memory
    assert "ada/digits" in files["README.md"].read().decode()
    assert Results.from_json(files["results.json"].read().decode()) == Results.read(trained)
    assert state(trained) == before


def test_the_recipe_that_goes_out_can_be_run_and_tells_no_path_and_no_repository(trained, run):
    """Whoever repeats the run would be told this machine's folders, and push to its owner's repository."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert Path(recipe["output_dir"]).is_absolute()
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "hub": {"repo_id": "ada/secret-plans"}}))
    (sent,) = [file for file in outgoing(run, Destination("ada/digits")) if file.path_in_repo == "recipe.yaml"]
    Path("sent.yaml").write_bytes(sent.read())
    found = read_resolved(Path("sent.yaml"))
    assert found.hub is None
    assert found.output_dir == "run"
    assert found.student == read_resolved(trained / "recipe.yaml").student


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "state.pkl", ".DS_Store", "notes.docx", ".git/x.txt"]
)
def test_pickles_and_what_no_student_needs_stay_here(run, name):
    """A pickle runs code where it is loaded, and holds this machine's paths."""
    (run / "student" / name).parent.mkdir(exist_ok=True)
    (run / "student" / name).write_text("x")
    assert names(run) == WHOLE


def test_text_of_the_user_beside_the_student_goes_out(run):
    """A card that was worked on by hand, replaced by a generated one."""
    card = run / "student" / "README.md"
    card.write_text(card.read_text() + "\nAsk me before you use it.\n")
    (sent, *_) = collect(run)
    assert sent.path_in_repo == "README.md"
    assert sent.read().decode().endswith("\nAsk me before you use it.\n")


@pytest.mark.parametrize("name", ["recipe.yaml", "results.json", "student"])
def test_a_run_that_is_not_finished_is_refused(run, name):
    """Weights without figures, or a card about a student that is not there."""
    shutil.rmtree(run / name) if name == "student" else (run / name).unlink()
    with pytest.raises(ValueError, match=f"run holds no finished run, {name} is missing: let `hf-distill train` end"):
        collect(run)


def test_what_is_no_run_is_refused(run):
    """The folder of the student is what one thinks of first."""
    with pytest.raises(ValueError, match=r"run/student is a part of a run: name the run's folder, .*/run$"):
        collect(run / "student")
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        collect(Path("nowhere"))
    (run / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json was not written by a run of this version"):
        collect(run)


def test_weights_that_are_cut_or_pickled_are_refused(run):
    """Half a model, published as a whole one."""
    weights = run / "student" / "model.safetensors"
    content = weights.read_bytes()
    for part in (content[:-1], content[:50], b"", b"\xff" * 100):
        weights.write_bytes(part)
        with pytest.raises(ValueError, match=r"model\.safetensors is no whole file of weights"):
            collect(run)
    weights.rename(run / "student" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights in safetensors: save the model again"):
        collect(run)


def test_a_part_of_the_weights_that_is_missing_is_noticed(run):
    """Two files of three load as a model with random layers."""
    student = run / "student"
    tensors = load_file(student / "model.safetensors")
    parts = dict(
        zip(tensors, ("model-1.safetensors", "model-2.safetensors", *["model-2.safetensors"] * 9), strict=False)
    )
    for part in set(parts.values()):
        save_file({name: tensor for name, tensor in tensors.items() if parts[name] == part}, student / part)
    (student / "model.safetensors").unlink()
    (student / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert {"model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"} < names(run)
    (student / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json names model-2\.safetensors, which is not there"):
        collect(run)


@pytest.mark.parametrize("base", ["/models/base", "./base", "base", None])
def test_an_adapter_of_a_model_that_nobody_else_has_is_refused(run, base):
    """An adapter alone is nothing: who loads it needs the same base."""
    student = run / "student"
    Path("base").mkdir()
    (student / "config.json").unlink()
    (student / "model.safetensors").rename(student / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": base}
    (student / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match=r"base_model_name_or_path is .*: set it to the base model's Hub id"):
        collect(run)
    (student / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": "ada/base"}))
    assert "adapter_model.safetensors" in names(run)


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("student/generation_config.json", '{"token": "hf_' + "a1B2" * 9 + '"}', "a Hugging Face token"),
        ("student/config.json", '{"_name_or_path": "HERE/teacher"}', "a folder of this machine"),
        ("results.json", None, "a folder of this machine"),
    ],
)
def test_keys_and_folders_stop_everything(run, name, content, finding):
    """They were found when the repository was public."""
    if content is None:
        content = (run / name).read_text().replace('"recipe": "digits"', '"recipe": "HERE/digits"')
    (run / name).write_text(content.replace("HERE", str(Path.cwd())))
    with pytest.raises(ValueError, match=rf"push stopped, .* {Path(name).name}, line \d+: {finding}") as found:
        outgoing(run, Destination("ada/digits"))
    assert "hf_a" not in str(found.value)


def test_hashes_are_those_of_git_and_of_large_files(tmp_path):
    """A file that is on the Hub already would be sent again, or one that is not would be left out."""
    of_git = {  # by `git hash-object`
        b"": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        b"a line\n": "e250146dbeb9d1c87e0b16ebe41925dc6d6ea0f5",
        bytes(range(256)) * 3000: "d9dcfa53c221456fca9a71ca367e8f1817064847",
    }
    for content, git in of_git.items():
        Path("file").write_bytes(content)
        for file in (Outgoing("file", content), Outgoing("file", Path("file"))):
            assert file.git_sha1 == git
            assert file.sha256 == hashlib.sha256(content).hexdigest()
            assert file.size == len(content)


def test_what_was_our_own_entry_on_the_hub_gives_way(trained):
    """Figures of an older student stayed in the model-index, and a license that was set here never got there."""
    card = card_of_run(trained, repo_id="ada/digits").card
    there = merge(None, card)
    own = there.replace("---\n", "---\nlicense: mit\n", 1) + "\nMine.\n"
    started = combined(there, own)
    card.data.eval_results[0].metric_value = 0.125
    pushed = merge(started, card)
    assert pushed.count("type: accuracy") == 1
    assert "value: 0.125" in pushed
    assert "license: mit" in pushed
    assert pushed.endswith("\nMine.\n")
    assert combined(started, own) == started


@pytest.mark.parametrize(
    ("whole", "removed"),
    [
        (True, {"model-1-of-2.safetensors", "adapter_config.json", "tokenizer.json", "mine.safetensors"}),
        (False, {"model-1-of-2.safetensors", "adapter_config.json"}),
    ],
)
def test_what_would_mix_with_a_push_goes_and_nothing_else(whole, removed):
    """Weights of another student that loading takes; or the user's own beside a trainer's, deleted."""
    there = {"model-1-of-2.safetensors", "adapter_config.json", "tokenizer.json", "mine.safetensors", "notes.txt"}
    there |= {"model.safetensors", "half/model.safetensors"}
    found = left_over(there | {"training_args.bin", "old/x"}, [Outgoing("model.safetensors", b"")], whole=whole)
    assert set(found) == removed | {"training_args.bin"}
    assert "old/x" in left_over(there | {"old/x"}, [], whole=whole, replaced="old")
