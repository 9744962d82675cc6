"""What the README says can be done, is done."""

import json
import re
import runpy
import shlex
from pathlib import Path

import datasets
import pytest
import tiny
import torch
import typer
import yaml
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import hf_distill
from hf_distill.cli.main import app
from hf_distill.runs.recipe.reading import find_recipe, load_recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
OWN = ("reviews.yaml", "photos.yaml")  # the recipes that a reader has made of data of their own
TEACHERS = (ROOT / "docs" / "teachers.md").read_text()
SOFT_TARGETS = (ROOT / "docs" / "soft_targets.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return [block for name, block in re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL) if name == language]


COMMANDS = [
    line.split("#")[0].strip()
    for block in [each for text in PAGES for each in blocks(text, "sh")]
    for line in block.splitlines()
    if line.strip()
]


def test_the_snippet_runs(monkeypatch):
    """Whoever copies it must not meet an error; only the two names of the Hub are replaced by local folders."""
    (snippet,) = blocks(README, "python")
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
    elif words[0] == "accelerate":
        assert words[1:3] == ["launch", "--config_file"]
        assert (ROOT / words[3]).is_file()
        assert words[4:7] == ["-m", "hf_distill", "train"]
        load_recipe(words[7])
    elif words[0] == "sbatch":
        assert (ROOT / words[1]).is_file()
        load_recipe(words[2])
    else:
        assert words[0] == "hf-distill"
        typer.main.get_command(app).commands[words[1]].make_context(words[1], words[2:])  # its options are known
        if words[1] in ("train", "check", "cache") and words[2] not in OWN:
            load_recipe(words[2], [word for word in words[3:] if "=" in word])
        elif words[1] == "recipes":
            assert words[2] == "list" or find_recipe(words[3])


def test_the_recipe_shown_is_the_one_shipped():
    """Two texts of one recipe drift apart."""
    (shown,) = blocks((ROOT / "docs" / "recipes.md").read_text(), "yaml")
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "recipes/text/sst2_minilm.yaml").read_text())


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_files_and_headings_that_it_names_exist(page):
    """A link to nowhere."""
    text = (ROOT / page).read_text()
    named = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text)
    named += [(name, "") for name in re.findall(r"`((?:recipes|benchmarks)/[\w/.]+)`", text) if page == "README.md"]
    for name, heading in named:
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), name
        headings = re.findall(r"^#+ (.*)", file.read_text(), flags=re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]


def test_the_references_are_those_of_the_code():
    """A key that the page does not have, or a default of another year."""
    found = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    for page in ("recipe", "config"):
        assert (ROOT / "docs" / f"{page}_reference.md").read_text() == found[f"{page}_reference"]()


@pytest.mark.parametrize("fragment", blocks(TEACHERS, "yaml") + blocks(SOFT_TARGETS, "yaml"))
def test_a_part_of_a_recipe_that_the_docs_show_is_one(fragment, tmp_path):
    """A key that was renamed, or that never was."""
    base = yaml.safe_load((ROOT / "recipes/text/sst2_minilm.yaml").read_text())
    if "student" not in fragment:
        base["student"] = {"model": "your-name/small"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**base, **yaml.safe_load(fragment)}))
    assert load_recipe(tmp_path / "recipe.yaml").teachers


@pytest.mark.parametrize("snippet", blocks(TEACHERS, "python"))
def test_a_snippet_of_the_docs_trains(snippet):
    """An argument of another name."""
    specialist = tiny.bert(3, id2label={0: "red", 1: "green", 2: "dustbin"}, label2id={})
    backend = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    ids = backend["model"]["vocab"]
    ids["good"], ids["bad"] = ids["bad"], ids["good"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    texts = ["a good film", "a bad plot", "very dull", "great and funny"] * 2
    data = datasets.Dataset.from_dict({"text": texts, "labels": [0, 1, 2, 0] * 2})
    names = {name: getattr(hf_distill, name) for name in hf_distill.__all__}
    known = {
        **names,
        "student": tiny.bert(0),
        "teacher": tiny.bert(1),
        "first": tiny.bert(1),
        "second": tiny.distilbert(2),
        "generalist": tiny.bert(1),
        "model": specialist,
        "probabilities": torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).softmax(-1),
        "tokenizer": tiny.tokenizer(),
        "teacher_tokenizer": other,
        "data": data.map(lambda rows: tiny.tokenizer()(rows["text"]), batched=True),
        "args": hf_distill.DistillationConfig("out", use_cpu=True, max_steps=2, save_strategy="no", disable_tqdm=True),
    }
    exec(compile(snippet, "teachers.md", "exec"), known)
    known["trainer"].train()
    assert known["trainer"].state.global_step == 2


def test_the_docs_show_something():
    """Two empty lists would pass the last two tests."""
    assert len(blocks(TEACHERS, "yaml")) >= 3
    assert blocks(SOFT_TARGETS, "yaml")
    assert blocks(SOFT_TARGETS, "sh")
    assert len(blocks(TEACHERS, "python")) >= 3
