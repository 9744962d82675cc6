"""What the README says can be done, is done."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
import tiny
import torch
import yaml

from hf_distill.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in CODE
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]


def test_the_snippet_runs(monkeypatch):
    """Whoever copies it must not meet an error; only the two names of the Hub are replaced by local folders."""
    (snippet,) = [block for language, block in CODE if language == "python"]
    teacher = tiny.bert(0, num_layers=3, initializer_range=0.5).eval()
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained("teacher")
    random = torch.Generator().manual_seed(0)
    texts = [" ".join(tiny.WORDS[i] for i in torch.randint(0, 20, (5,), generator=random)) for _ in range(48)]
    with torch.no_grad():
        logits = teacher(**tokenizer(texts, return_tensors="pt", padding=True)).logits
        teacher.classifier.bias -= logits.mean(0)
        answers = (logits - logits.mean(0)).argmax(-1).tolist()
    teacher.save_pretrained("teacher")
    assert len(set(answers)) > 1
    rows = datasets.Dataset.from_dict({"sentence": texts, "label": answers})
    Path("sst2").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(f"sst2/{split}.parquet")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, folder in (("your-name/bert-base-sst2", "teacher"), ("stanfordnlp/sst2", "sst2")):
        assert name in snippet
        snippet = snippet.replace(name, folder)
    found: dict = {}
    exec(compile(snippet, "README.md", "exec"), found)
    assert found["trainer"].state.global_step > 0
    assert found["trainer"].evaluate()["eval_loss"] > 0


def test_there_are_commands():
    """An empty list would pass the next test."""
    assert len([command for command in COMMANDS if command.startswith("hf-distill")]) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_exists(command):
    """A command that the README names and nobody can run."""
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == "hf-distill"
        if words[1] in ("train", "check"):
            load_recipe(words[2], words[3:])
        else:
            assert words[1] == "recipes"
            assert words[2] == "list" or find_recipe(words[3])


def test_the_recipe_shown_is_the_one_shipped():
    """Two texts of one recipe drift apart."""
    (shown,) = [block for language, block in CODE if language == "yaml"]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "recipes/text/sst2_minilm.yaml").read_text())


def test_files_that_it_names_exist():
    """A link to nowhere."""
    named = set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(re.findall(r"`((?:recipes|benchmarks)/[\w/.]+)`", README))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
