"""Models that would fail on the data of a run, found out before any is trained."""

from pathlib import Path

import pytest
import tiny
import yaml
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, pipeline

from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill

CPU = {"use_cpu": True, "report_to": "none", "max_steps": 2}
NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def run(text: str = "good film;pos\nbad plot;neg\n", **sections) -> None:
    Path("x.csv").write_text("text;label\n" + text * 10)
    recipe = {
        "task": "text-classification",
        "data": {"path": "x.csv", "train_split": "train[:12]", "eval_split": "train[12:]"},
        "teacher": {"model": "teacher", "training": CPU},
        "student": {"from_teacher": {"layers": [0]}},
        "baseline": False,
        "training": {**CPU, "allow_untrained_teacher": True},
        "output_dir": "run",
    }
    Path("x.yaml").write_text(yaml.safe_dump({**recipe, **sections}))
    distill(load_recipe("x.yaml"), "x")


def refused(message: str, **sections) -> None:
    with pytest.raises(ValueError, match=message):
        run(**sections)
    assert not Path("run").exists()  # neither was the teacher trained


@pytest.fixture(autouse=True)
def teacher() -> None:
    tiny.bert(**NAMES).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")


pytestmark = pytest.mark.filterwarnings("ignore:data. ")


def test_a_vocabulary_that_is_too_small_is_refused_with_both_numbers():
    """The teacher is trained for an hour, and then an IndexError."""
    number = len(tiny.VOCABULARY)
    config = {"model_type": "bert", "vocab_size": 4, **SMALL}
    refused(
        rf"student: has embeddings for 4 tokens, .*has {number}: set student.config.vocab_size={number}",
        student={"config": config},
    )


def test_tokens_that_were_added_without_embeddings_are_refused():
    """Special tokens of a tokenizer that somebody has saved beside a model which was not resized."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<url>"])
    tokenizer.save_pretrained("teacher")
    refused(r"teacher: has embeddings for .*\(teacher.processor\), or resize its embeddings")


def test_a_decoder_without_a_padding_token_pads_with_its_end_of_text():
    """The teacher is trained first, and the student's first batch fails."""
    config = GPT2Config(vocab_size=len(tiny.VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=32, **NAMES)
    GPT2ForSequenceClassification(config).save_pretrained("gpt2")
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained("gpt2")
    run(student={"model": "gpt2"})
    saved = GPT2ForSequenceClassification.from_pretrained("run/student")
    assert saved.config.pad_token_id == tiny.VOCABULARY.index("[SEP]")
    assert AutoTokenizer.from_pretrained("run/student").pad_token == "[SEP]"
    classify = pipeline("text-classification", "run/student", device="cpu")
    assert len(classify(["good film", "a very long film and a plot"], batch_size=2)) == 2


def test_a_tokenizer_with_nothing_to_pad_with_is_refused():
    """An error of the collator, after the teacher's training."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained("teacher")
    refused("the tokenizer of 'teacher' has neither a padding token nor an end-of-text token")


def test_the_saved_tokenizer_says_what_the_student_takes():
    """A pipeline with truncation=True fails on the first long text: it cuts at what the teacher takes."""
    config = {"model_type": "bert", "vocab_size": len(tiny.VOCABULARY), "max_position_embeddings": 16, **SMALL}
    run(student={"config": config, "processor": "teacher"})
    assert AutoTokenizer.from_pretrained("run/student").model_max_length == 16
    assert AutoTokenizer.from_pretrained("run/teacher").model_max_length == 32
    classify = pipeline("text-classification", "run/student", device="cpu")
    assert classify("good film " * 40, truncation=True)


def test_a_row_without_tokens_is_named():
    """An empty text, and a tokenizer without special tokens: an error of the model in some epoch."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained("teacher")
    refused("row 1 of the train data has no tokens", text="good film;pos\n ;neg\nbad;neg\n")


def test_a_batch_that_a_model_cannot_read_is_told_with_its_shapes():
    """Segments of a text that the student has no embeddings for: the error of an embedding, without a name."""
    tiny.bert(type_vocab_size=1, **NAMES).save_pretrained("narrow")
    tiny.tokenizer().save_pretrained("narrow")
    Path("x.csv").write_text("sentence1;sentence2;label\n" + "good film;a plot;pos\nbad plot;a film;neg\n" * 10)
    recipe = yaml.safe_load(
        """
        task: text-classification
        data: {path: x.csv, train_split: "train[:12]", eval_split: "train[12:]"}
        baseline: false
        output_dir: run
        """
    )
    recipe |= {"teacher": {"model": "teacher", "training": CPU}, "student": {"model": "narrow"}, "training": CPU}
    Path("x.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=r"student: the model cannot read the data \(input_ids \(2, \d+\)"):
        distill(load_recipe("x.yaml"), "x")
    assert not Path("run").exists()
