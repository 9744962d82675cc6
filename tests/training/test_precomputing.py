"""Training on what a teacher has said beforehand: the same as with the teacher beside it, or an error."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    TrainerCallback,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_distill import DistillationConfig, DistillationTrainer, Specialist
from hf_distill.data.images import ImageRows
from hf_distill.data.soft_targets import CACHED_LOGITS, CACHED_MASK, CachedDataset
from hf_distill.teachers.cache import shards
from hf_distill.teachers.cache.builder import CacheBuilder
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.cache.store import SoftTargets
from hf_distill.training.distributed import shutdown_processes
from tests.data.test_images import encoded
from tests.data.test_processors import byte_level

WIDE = {"initializer_range": 0.3}  # logits that differ from row to row
FOLDER = "kept"


def ragged(count: int = 13, kind: str = "single", **columns) -> Dataset:
    """Rows of many lengths, so that a batch has padding."""
    rows = []
    for place, row in enumerate(tiny.text_rows(count, kind)):
        length = 2 + (place * 7) % 5
        row["attention_mask"] = torch.ones(6, dtype=torch.long)
        plain = {}
        for name, value in row.items():
            is_of_tokens = value.dim() == 1 and len(value) == 6
            plain[name] = value[:length].tolist() if is_of_tokens else value.tolist()
        plain["input_ids"] = [max(5, token) for token in plain["input_ids"]]
        rows.append(plain)
    made = Dataset.from_list(rows)
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def padding():
    return DataCollatorWithPadding(tiny.tokenizer())


def trainer(teacher, rows, eval_rows=None, *, student=None, kept=None, collator=None, **settings):
    given = {name: settings.pop(name) for name in ("processing_class", "teacher_processing_class") if name in settings}
    base = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "allow_untrained_teacher": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "alpha": 0.3,
    }
    if kept is not None:
        base |= {"precompute_teacher_logits": True, "teacher_logits_dir": str(kept), "teacher_logits_dtype": "float32"}
    made = DistillationTrainer(
        tiny.bert(0) if student is None else student,
        teacher,
        DistillationConfig(**{"output_dir": "out", **base, **settings}),
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=collator,
        **given,
    )
    made.remove_callback(PrinterCallback)
    return made


def losses(made) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def filled(folder=FOLDER, teacher=None, rows=None, **settings) -> SoftTargets:
    """Fill a folder, as the tests below find it."""
    rows = ragged() if rows is None else rows
    settings.setdefault("collator", padding())
    trainer(
        tiny.bert(1, **WIDE) if teacher is None else teacher, rows, kept=folder, **settings
    ).precompute_teacher_logits()
    return SoftTargets(Path(folder))


def shards_in(folder=FOLDER) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


class Counting:
    """Count the rows that a model is run on."""

    def __init__(self, model):
        self.num_rows = 0
        model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, model, args, kwargs, output):
        self.num_rows += len(output.logits)


# ---- The same training ----


def word_rows(count: int = 9) -> Dataset:
    """Words and the student's tokens of them, of which the teacher has others."""
    tokenizer, rows = tiny.tokenizer(), []
    for place in range(count):
        words = [tiny.WORDS[(place * 3 + k) % len(tiny.WORDS)] for k in range(2 + place % 4)]
        tokens = tokenizer(words, is_split_into_words=True)
        labels = [-100 if word is None else (place + word) % 3 for word in tokens.word_ids()]
        ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        rows.append({"words": words, **ids, "labels": labels})
    return Dataset.from_list(rows)


def sentence_rows(count: int = 13) -> Dataset:
    tokenizer, rows = tiny.tokenizer(), []
    for place in range(count):
        text = " ".join(tiny.WORDS[(place * 3 + k) % len(tiny.WORDS)] for k in range(2 + place % 4))
        tokens = tokenizer(text)
        ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        rows.append({"text": text, **ids, "labels": place % 3})
    return Dataset.from_list(rows)


def special(seed: int, *names: str) -> Specialist:
    own = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return Specialist(tiny.bert(seed, **WIDE, **own), oversampling=3.0)


def own_tokenizer(**more):
    return {"teacher_processing_class": byte_level(model_max_length=32), "processing_class": tiny.tokenizer(), **more}


def other_student(build, kind="single"):
    problem = {"multi": "multi_label_classification", "regression": "regression"}.get(kind)
    return {"student": build(0, problem_type=problem)}


CASES = {
    "padded texts": lambda: (tiny.bert(1, **WIDE), ragged(), {"collator": padding()}),
    "a list of rows": lambda: (tiny.bert(1, **WIDE), tiny.text_rows(13), {}),
    "grouped by length": lambda: (
        tiny.bert(1, **WIDE),
        ragged(),
        {"collator": padding(), "train_sampling_strategy": "group_by_length"},
    ),
    "images": lambda: (tiny.vit(1, **WIDE), tiny.image_rows(13), {"student": tiny.vit(0)}),
    "images of a data set": lambda: (tiny.vit(1, **WIDE), images(13), {"student": tiny.vit(0)}),
    "tokens": lambda: (
        tiny.bert_for_tokens(1, **WIDE),
        ragged(kind="token"),
        {
            "student": tiny.bert_for_tokens(0),
            "collator": DataCollatorForTokenClassification(tiny.tokenizer()),
        },
    ),
    "tokens padded on the left": lambda: (
        without_positions(tiny.bert_for_tokens(1, **WIDE)),
        ragged(kind="token"),
        {"student": without_positions(tiny.bert_for_tokens(0)), "collator": pad_left},
    ),
    "several labels": lambda: (
        tiny.bert(1, **WIDE, problem_type="multi_label_classification"),
        tiny.text_rows(13, "multi"),
        other_student(tiny.bert, "multi"),
    ),
    "regression": lambda: (
        tiny.bert(1, **WIDE, problem_type="regression"),
        tiny.text_rows(13, "regression"),
        other_student(tiny.bert, "regression"),
    ),
    "an ensemble": lambda: (
        [tiny.bert(1, **WIDE), tiny.distilbert(2, **WIDE)],
        ragged(),
        {
            "collator": padding(),
            "teacher_weights": [3.0, 1.0],
            "temperature_end": 1.0,
            "schedule": "linear",
        },
    ),
    "a geometric ensemble": lambda: (
        [tiny.bert(1, **WIDE), tiny.bert(2, **WIDE)],
        ragged(),
        {"collator": padding(), "teacher_combination": "geometric"},
    ),
    "specialists": lambda: (
        [special(3, "red", "dustbin"), tiny.bert(1, **WIDE), special(4, "dustbin", "green", "blue")],
        ragged(),
        {"collator": padding()},
    ),
    "labels in another order": lambda: (
        tiny.bert(1, **WIDE, **{"id2label": {0: "blue", 1: "red", 2: "green"}}),
        ragged(),
        {"collator": padding()},
    ),
    "token types that the student lacks": lambda: (
        tiny.bert(1, **WIDE),
        ragged().map(lambda row: {"token_type_ids": [0] + [1] * (len(row["input_ids"]) - 1)}),
        {"collator": padding(), "student": tiny.distilbert(0)},
    ),
    "a tokenizer of its own": lambda: (
        tiny.bert(1, **WIDE, vocab_size=400),
        sentence_rows(),
        own_tokenizer(collator=padding()),
    ),
    "a tokenizer of its own for words": lambda: (
        tiny.bert_for_tokens(1, **WIDE, vocab_size=400),
        word_rows(),
        own_tokenizer(
            collator=DataCollatorForTokenClassification(tiny.tokenizer()),
            student=tiny.bert_for_tokens(0),
        ),
    ),
    "an image processor of its own": lambda: (
        tiny.convnext(1, **WIDE),
        images(9, teacher_processors=[image_processor(12)]),
        {
            "student": tiny.vit(0),
            "teacher_processing_class": image_processor(12),
            "processing_class": image_processor(8),
        },
    ),
    "a function": lambda: (Function(tiny.bert(1, **WIDE)), tiny.text_rows(13), {}),
}


def without_positions(model):
    """Padding on the left moves each token to another position, with other logits in each batch."""
    model.bert.embeddings.position_embeddings.weight.data.zero_()
    return model


class Function:
    fingerprint = "one"

    def __init__(self, model):
        self.model = model.eval()

    def __call__(self, batch):
        return self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def pad_left(rows):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return DataCollatorForTokenClassification(tokenizer)(rows)


def image_processor(size: int = 8) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size})


def images(count: int = 6, **options) -> ImageRows:
    features = Features({"image": datasets.Image(), "labels": Value("int64")})
    entries = [{"bytes": encoded(row), "path": None} for row in range(count)]
    rows = Dataset.from_dict({"image": entries, "labels": [row % 3 for row in range(count)]}, features=features)
    return ImageRows(rows, "image", image_processor(), **options)


SELDOM = {
    "grouped by length",
    "images of a data set",
    "tokens padded on the left",
    "several labels",
    "a geometric ensemble",
    "labels in another order",
    "token types that the student lacks",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SELDOM else case for case in CASES]
)
def test_training_is_that_with_the_teacher_beside_it(case):
    """Another row's soft targets, or those of padding, of another label, at another temperature; and no error."""
    trained = []
    for kept in (None, FOLDER):
        teacher, rows, settings = CASES[case]()
        made = trainer(teacher, rows, rows, kept=kept, **{**tiny.SGD, **settings})
        made.train()
        trained.append((losses(made), made.evaluate(), made.model.state_dict(), made.teacher_quality))
    (online, evaluated, weights, quality), (cached, evaluated_again, weights_again, quality_again) = trained
    assert len(online) >= 4
    assert len(set(online)) > 1
    # Attention over a longer padded batch adds the same numbers in another order.
    assert cached == pytest.approx(online, rel=1e-4, abs=1e-5)
    assert evaluated_again["eval_loss"] == pytest.approx(evaluated["eval_loss"], rel=1e-4, abs=1e-5)
    assert evaluated_again["eval_soft_loss"] == pytest.approx(evaluated["eval_soft_loss"], rel=1e-4, abs=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(weights_again[name], value, rtol=0, atol=1e-5, msg=lambda t, n=name: n + t)
    if quality is not None:
        assert quality_again.value == pytest.approx(quality.value, abs=1e-5)


# ---- What is asked, and how often ----


@pytest.fixture
def uncompared(monkeypatch):
    """Ask about no row a second time, so that the rows asked about can be counted."""
    monkeypatch.setattr("hf_distill.teachers.cache.builder.CacheBuilder._compare", lambda *_: None)


def asked(rows, **settings) -> int:
    """Return how many rows a teacher is asked about."""
    teacher = tiny.bert(1, **WIDE)
    count = Counting(teacher)
    filled(teacher=teacher, rows=rows, **settings)
    return count.num_rows


def brought(made, rows) -> dict[bytes, list]:
    """Return the soft targets that the batches of a data set bring, by the rows' tokens."""
    found = {}
    for batch in made.get_test_dataloader(rows):
        assert CACHED_MASK not in batch
        for ids, mask, logits in zip(batch["input_ids"], batch["attention_mask"], batch[CACHED_LOGITS][0], strict=True):
            found[tuple(ids[mask.bool()].tolist())] = logits.tolist()
    return found


@pytest.mark.usefixtures("uncompared")
class TestAsking:
    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows.shuffle(seed=4),
            lambda rows: rows.filter(lambda row: row["labels"] != 1),
            lambda rows: rows.select([7, 7, 2, 11]),
            lambda rows: concatenate_datasets([rows.select(range(5, 13)), rows.select(range(9))]),
            lambda rows: rows.select(range(12, -1, -1)),
            lambda rows: rows.remove_columns("labels").add_column("labels", [0] * 13),
            lambda rows: rows.to_list(),
            lambda rows: rows.with_format("torch"),
        ],
    )
    def test_other_arrangements_of_the_rows_find_their_own_soft_targets(self, change):
        """Soft targets by position, which are another row's after a shuffle; and the teacher run again."""
        filled()
        teacher = tiny.bert(1, **WIDE)
        count = Counting(teacher)
        rows = change(ragged())
        made = trainer(teacher, rows, kept=FOLDER, collator=padding())
        made.precompute_teacher_logits()
        assert count.num_rows == 0
        found = brought(made, rows)
        assert len(found) == len({tuple(np.asarray(row["input_ids"]).tolist()) for row in rows})
        with torch.no_grad():
            for ids, logits in found.items():
                expected = teacher(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int))
                assert torch.allclose(torch.tensor(logits), expected.logits[0], atol=1e-5)

    def test_only_rows_that_are_new_are_asked_about(self):
        """Hours for a few rows that were added; or rows that are alike asked about one by one."""
        rows = ragged(20)
        assert asked(rows.select(range(12))) == 12
        assert asked(rows) == 8
        assert asked(concatenate_datasets([rows, ragged(20), rows.select([0] * 9)])) == 0
        shutil.rmtree(FOLDER)
        assert asked(rows.select([3] * 7 + [4])) == 2

    def test_evaluation_rows_are_asked_about_too(self):
        """A soft loss that is missing from the evaluation, or a teacher that is kept for it."""
        rows = ragged(20)
        assert asked(rows.select(range(12)), eval_rows={"a": rows.select(range(10, 15)), "b": rows}) == 20

    def test_the_longest_rows_come_first_in_large_batches(self):
        """Padding of random batches; and memory that runs out in the last batch, not in the first."""
        shapes = []
        teacher = tiny.bert(1)
        teacher.register_forward_hook(
            lambda model, args, kwargs, out: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        filled(teacher=teacher, rows=ragged(40))
        assert [len(shape) and shape[0] for shape in shapes] == [16, 16, 8]  # four times the training's
        widths = [shape[1] for shape in shapes]
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] < widths[0]
        shutil.rmtree(FOLDER)
        shapes.clear()
        filled(teacher=teacher, rows=ragged(40), teacher_logits_batch_size=5)
        assert [shape[0] for shape in shapes] == [5] * 8

    def test_alpha_one_asks_nothing(self):
        """A teacher that is run over all rows for a loss without a weight."""
        made = trainer(tiny.bert(1), ragged(), kept=FOLDER, collator=padding(), alpha=1.0, max_steps=1)
        made.train()
        assert not Path(FOLDER).exists()

    def test_the_folder_is_hidden_in_the_output_folder_unless_it_is_named(self):
        """The soft targets of all training rows uploaded with the model, by push_to_hub."""
        made = trainer(tiny.bert(1), ragged(), collator=padding(), precompute_teacher_logits=True)
        made.precompute_teacher_logits()
        assert shards_in("out/_teacher_logits")

    def test_the_random_state_is_left_alone(self):
        """Another order of the batches, for a run that finds all soft targets than for the one that has made them."""
        made = trainer(tiny.bert(1), ragged(), ragged(5), kept=FOLDER, collator=padding())
        state = torch.random.get_rng_state()
        made.precompute_teacher_logits()
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_what_top_k_leaves_out_is_measured_and_close_to_all(self):
        """A few of the logits, taken for all of them; or nobody told how much is lost."""
        names = {"id2label": {i: f"class {i}" for i in range(12)}, "label2id": {f"class {i}": i for i in range(12)}}
        results = []
        for kept, more in (("all", {}), ("top", {"teacher_logits_top_k": 8})):
            made = trainer(
                tiny.bert(1, **WIDE, **names),
                ragged(),
                student=tiny.bert(0, **names),
                kept=kept,
                collator=padding(),
                **more,
            )
            made.train()
            results.append((losses(made), SoftTargets(Path(kept))))
        (exact, whole), (close, part) = results
        assert whole.top_k_error() is None
        mean, largest = part.top_k_error()
        assert 0 < mean < largest < 0.05
        assert close[0] == pytest.approx(exact[0], rel=0.05)
        assert close[0] != pytest.approx(exact[0], rel=1e-4)

    def test_half_precision_is_the_usual_and_regression_keeps_more(self):
        """Numbers in thousands, of which float16 keeps no digit after the point."""
        made = trainer(tiny.bert(1), ragged(), kept=FOLDER, collator=padding(), teacher_logits_dtype=None)
        made.precompute_teacher_logits()
        assert SoftTargets(Path(FOLDER)).key["logits"]["dtype"] == "float16"
        problem = {"problem_type": "regression"}
        rows = tiny.text_rows(5, "regression")
        filled(
            "other",
            tiny.bert(1, **problem),
            rows,
            student=tiny.bert(0, **problem),
            collator=None,
            teacher_logits_dtype=None,
        )
        assert SoftTargets(Path("other")).key["logits"]["dtype"] == "float32"

    def test_a_folder_goes_on_in_the_type_that_it_has(self):
        """Soft targets refused for a type that nobody has named."""
        filled(rows=ragged().select(range(6)))
        made = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, collator=padding(), teacher_logits_dtype=None)
        made.precompute_teacher_logits()
        assert len(shards_in()) == 2
        assert SoftTargets(Path(FOLDER)).key["logits"]["dtype"] == "float32"
        check_all(FOLDER, ragged())

    def test_rows_at_once_are_those_of_one_device(self):
        """Eight GPUs in one process, and one of them gets the rows of all: it runs out of memory."""
        made = trainer(tiny.bert(1, **WIDE), ragged(40), kept=FOLDER, collator=padding())
        made.args._n_gpu = 8
        assert made.args.train_batch_size == 32
        numbers = []
        made.teacher.register_forward_hook(lambda model, args, output: numbers.append(len(output.logits)))
        made.precompute_teacher_logits()
        assert max(numbers) == 16

    def test_too_many_rows_at_once_for_the_memory_name_the_setting(self):
        """A page of CUDA's words, and nothing that says what to change."""
        made = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, collator=padding())

        def fail(*_):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")

        made.teacher.register_forward_pre_hook(fail)
        with pytest.raises(
            ValueError, match=r"not enough for 16 rows at once: set teacher_logits_batch_size .*\. Tried to allocate 20"
        ):
            made.precompute_teacher_logits()

    def test_deepspeed_leaves_soft_targets_in_their_type(self, monkeypatch):
        """Regression targets of three digits: `Trainer` converts all numbers of a batch to the student's type."""
        rows = tiny.text_rows(4, "regression")
        problem = {"problem_type": "regression"}
        made = trainer(tiny.bert(1, **problem), rows, kept=FOLDER, student=tiny.bert(0, **problem))
        made.precompute_teacher_logits()
        (batch,) = made.get_train_dataloader()
        settings = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
        monkeypatch.setattr(type(made.accelerator.state), "deepspeed_plugin", settings)
        made.is_deepspeed_enabled = True
        prepared = made._prepare_inputs(batch)
        assert prepared["labels"].dtype == torch.bfloat16
        assert torch.equal(prepared[CACHED_LOGITS][0], batch[CACHED_LOGITS][0])
        assert prepared[CACHED_LOGITS][0].dtype == torch.float32

    def test_worker_processes_read_and_train_the_same(self):
        """Rows in another order; or a data set that a worker process cannot have."""
        expected = trainer(tiny.bert(1, **WIDE), ragged(), collator=padding())
        expected.train()
        made = trainer(
            tiny.bert(1, **WIDE),
            ragged(),
            kept=FOLDER,
            collator=padding(),
            dataloader_num_workers=1,
            num_train_epochs=2,
        )
        made.train()
        assert losses(made) == pytest.approx(losses(expected), rel=1e-4, abs=1e-5)


# ---- Letting the teacher go ----


class TestLettingGo:
    def test_a_teacher_that_was_named_is_gone_before_the_training(self, tmp_path):
        """The memory of a teacher that has nothing more to say; or its work in each step."""
        tiny.bert(1).save_pretrained(tmp_path / "teacher")
        made = trainer(str(tmp_path / "teacher"), ragged(), ragged(5), kept=FOLDER, collator=padding())
        teacher = weakref.ref(made.teacher)
        gc.disable()  # what only the collector frees may be there for the whole training
        try:
            made.precompute_teacher_logits()
            assert teacher() is None
        finally:
            gc.enable()
        assert made.teacher is None
        assert isinstance(made.soft_targets, CachedTeacher)
        made.train()

    def test_a_model_that_was_passed_is_not_run_in_training(self):
        """Soft targets that are kept, and a teacher that is run all the same."""
        teacher = tiny.bert(1)
        made = trainer(teacher, ragged(), ragged(5), kept=FOLDER, collator=padding())
        made.precompute_teacher_logits()
        teacher.forward = None
        made.train()
        made.evaluate()

    def test_a_model_goes_back_to_where_it_came_from(self):
        """A GPU full of a teacher that the user had kept on the CPU."""
        teacher = tiny.bert(1)
        made = trainer(teacher, ragged(), kept=FOLDER, collator=padding())
        assert [(model, origin.type) for model, origin in made._built.devices] == [(teacher, "cpu")]
        moved = []
        teacher.to = lambda device: moved.append(device.type)
        made.precompute_teacher_logits()
        assert moved == ["cpu"]

    def test_the_student_is_given_what_it_takes_and_no_more(self):
        """Token types of a teacher, or its texts, that are collated for nobody."""
        rows = sentence_rows().map(lambda row: {"token_type_ids": [0] * len(row["input_ids"])})
        seen = []

        def collator(batch):
            seen.append(set(batch[0]))
            return padding()(batch)

        made = trainer(tiny.bert(1), rows, kept=FOLDER, collator=collator, student=tiny.distilbert(0), max_steps=1)
        made.precompute_teacher_logits()
        assert {"input_ids", "attention_mask", "token_type_ids", "labels"} in seen
        seen.clear()
        made.train()
        assert all(names == {"input_ids", "attention_mask", "labels"} for names in seen)
        assert seen

    def test_images_of_the_teacher_are_not_made_any_more(self):
        """Each image processed twice, in each epoch, for a teacher that is gone."""
        rows = images(6, teacher_processors=[image_processor(12)])
        processors = {"teacher_processing_class": image_processor(12), "processing_class": image_processor(8)}
        made = trainer(tiny.convnext(1), rows, student=tiny.vit(0), kept=FOLDER, max_steps=1, **processors)
        made.precompute_teacher_logits()
        rows.teacher_processors = None  # whoever asks for them fails
        made.train()

    def test_other_data_are_evaluated_by_their_labels_with_one_warning(self):
        """A soft loss of 0: a perfect student; or the same warning for each batch."""
        rows = ragged()
        made = trainer(tiny.bert(1), rows, rows.select(range(5)), kept=FOLDER, collator=padding(), max_steps=1)
        made.train()
        known = made.evaluate()
        with pytest.warns(UserWarning, match=r"no cached soft targets .* labels alone"):
            other = made.evaluate(rows.select(range(5)))
        made.evaluate(rows.select(range(3)))  # a second warning would be an error
        predicted = made.predict(rows.select(range(5)).remove_columns("labels"))
        assert other["eval_label_loss"] == pytest.approx(known["eval_label_loss"])
        assert "eval_soft_loss" in known
        assert "eval_soft_loss" not in other
        assert other["eval_loss"] == other["eval_label_loss"]
        assert predicted.predictions.shape == (5, 3)

    def test_other_data_of_tokens_are_evaluated_too(self):
        """Soft targets of the wrong shape, for data that have none."""
        rows = ragged(kind="token")
        settings = {
            "collator": DataCollatorForTokenClassification(tiny.tokenizer()),
            "student": tiny.bert_for_tokens(0),
        }
        made = trainer(tiny.bert_for_tokens(1), rows, kept=FOLDER, max_steps=1, **settings)
        made.train()
        with pytest.warns(UserWarning, match="no cached soft targets for this data set"):
            assert "eval_label_loss" in made.evaluate(ragged(5, kind="token"))

    def test_the_teachers_answers_can_still_be_looked_at(self):
        """Results of the teacher that are those of another row, when it is gone."""
        rows = ragged()
        teachers = [tiny.bert(1, **WIDE), tiny.bert(2, **WIDE)]
        before, labels = trainer(teachers, rows, rows, collator=padding()).predict_with_teacher(rows)
        made = trainer(teachers, rows, rows, kept=FOLDER, collator=padding())
        made.precompute_teacher_logits()
        after, labels_after = made.predict_with_teacher(rows)
        assert list(after) == ["teacher 1 of 2", "teacher 2 of 2", "all teachers together"]
        for who, logits in before.items():
            assert np.allclose(after[who], logits, atol=1e-4)
        assert np.array_equal(labels, labels_after)
        with pytest.raises(ValueError, match="no cached soft targets for this data set, and the teacher was released"):
            made.predict_with_teacher(ragged())

    def test_a_teacher_no_better_than_chance_is_found_out(self):
        """The check before the training lost with the teacher."""
        rows = ragged(60)
        made = trainer(tiny.bert(1), rows, rows, kept=FOLDER, collator=padding(), allow_untrained_teacher=False)
        with pytest.raises(ValueError, match="predicts the evaluation labels no better than chance"):
            made.train()

    def test_a_resumed_training_ends_as_one_that_was_not_stopped(self):
        """Soft targets in the order of the first epoch, for the rows of the second."""

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 5

        settings = {"collator": padding(), "save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3}
        whole = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, **{**settings, "output_dir": "whole"})
        whole.train()
        stopped = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, **settings)
        stopped.add_callback(Stop)
        stopped.train()
        resumed = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, **settings)
        resumed.train(resume_from_checkpoint=True)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name

    def test_a_second_training_on_other_data_needs_the_teacher(self):
        """Rows without soft targets that train on their labels alone."""
        made = trainer(tiny.bert(1), ragged(10), kept=FOLDER, collator=padding(), max_steps=1)
        made.train()
        made.train()
        made.train_dataset = ragged(14)
        with pytest.raises(
            ValueError, match=r"4 of 14 rows have no cached soft targets in kept, and no teacher was given"
        ):
            made.train()

    def test_rows_added_to_the_data_set_are_noticed(self):
        """A list that has grown, and soft targets that have not."""
        rows = tiny.text_rows(8)
        made = trainer(tiny.bert(1), rows, kept=FOLDER, max_steps=1)
        made.precompute_teacher_logits()
        rows.append(rows[0])
        with pytest.raises(ValueError, match="the data have 9 rows, and had 8 when their soft targets were looked up"):
            made.train()

    def test_rows_that_were_changed_in_place_are_noticed(self):
        """The soft targets of what a row was."""
        rows = tiny.text_rows(8)
        made = trainer(tiny.bert(1), rows, kept=FOLDER, max_steps=2)
        made.precompute_teacher_logits()
        for row in rows:
            row["input_ids"] = row["input_ids"].flip(0)
        with pytest.raises(
            ValueError, match=r"row \d of the data is not what it was when its soft targets were looked up"
        ):
            made.train()


GENERALIST = {"weights": "ab12"}
SPECIALIST = {"weights": "cd34", "specialist": {"classes": [0], "oversampling": 1.0}}


@pytest.fixture(scope="module")
def kept_of_three(tmp_path_factory) -> Path:
    """Return a folder of two teachers and a specialist, which no test may change."""
    folder = tmp_path_factory.mktemp("three") / FOLDER
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        filled(folder, [tiny.bert(1, **WIDE), tiny.bert(2, **WIDE), special(3, "red", "dustbin")])
    return folder


@pytest.fixture
def three_teachers(kept_of_three) -> None:
    """Put a copy of it here."""
    shutil.copytree(kept_of_three, FOLDER)


class TestWithoutATeacher:
    def test_soft_targets_of_another_run_teach_the_same(self):
        """Other weights of the members, or no loss of the teacher's at all."""
        teachers = [special(3, "red", "dustbin"), tiny.bert(1, **WIDE), tiny.bert(2, **WIDE)]
        settings = {"collator": padding(), "teacher_weights": [3.0, 1.0]}
        online = trainer(teachers, ragged(), ragged(5), **settings)
        online.train()
        filled(teacher=teachers, eval_rows=ragged(5))
        made = trainer(None, ragged(), ragged(5), kept=FOLDER, **settings)
        assert made.evaluate()["eval_soft_loss"] > 0
        made.train()
        assert losses(made) == pytest.approx(losses(online), rel=1e-4, abs=1e-5)
        assert made.evaluate()["eval_loss"] == pytest.approx(online.evaluate()["eval_loss"], rel=1e-4, abs=1e-5)

    def test_tokens_and_the_teachers_own_inputs_need_no_teacher_either(self):
        """Digests of other columns than those that the teacher had read."""
        teacher, rows, settings = CASES["a tokenizer of its own for words"]()
        online = trainer(teacher, rows, **settings)
        online.train()
        filled(teacher=teacher, rows=rows, **{**settings, "student": tiny.bert_for_tokens(0)})
        settings = {**settings, "teacher_processing_class": None, "student": tiny.bert_for_tokens(0)}
        made = trainer(None, rows, kept=FOLDER, **settings)
        made.train()
        assert losses(made) == pytest.approx(losses(online), rel=1e-4, abs=1e-5)

    def test_rows_that_nobody_was_asked_about_are_counted(self):
        """A training on the labels of some rows, with nobody told."""
        filled(rows=ragged(10))
        with pytest.raises(
            ValueError, match=r"3 of 13 rows have no cached soft targets in kept, and no teacher was given"
        ):
            trainer(None, ragged(13), kept=FOLDER, collator=padding()).train()

    def test_what_does_not_fit_is_refused_at_once(self):
        """Soft targets of other labels, or in another type than the one asked for."""
        filled()
        other = tiny.bert(0, **{"id2label": {0: "blue", 1: "red", 2: "green"}})
        with pytest.raises(ValueError, match=r'labels\.0 is "red" there and "blue" here'):
            trainer(None, ragged(), kept=FOLDER, student=other)
        with pytest.raises(ValueError, match=r"logits\.top_k is null there and 1 here"):
            trainer(None, ragged(), kept=FOLDER, teacher_logits_top_k=1)
        with pytest.raises(ValueError, match='level is "rows" there and "tokens" here'):
            trainer(None, ragged(kind="token"), kept=FOLDER, student=tiny.bert_for_tokens(0))
        with pytest.raises(ValueError, match="teacher_weights and teacher_combination are for several teachers"):
            trainer(None, ragged(), kept=FOLDER, teacher_weights=[1.0])
        with pytest.raises(ValueError, match="there is no teacher, and none has no soft targets of one"):
            trainer(None, ragged(), kept="none")
        with pytest.raises(ValueError, match="teacher_processing_class is for a teacher, and there is none"):
            trainer(None, ragged(), kept=FOLDER, teacher_processing_class=tiny.tokenizer())

    @pytest.mark.parametrize(
        ("path", "value", "fault"),
        [
            (["teachers"], 3, "teachers is 3, expected an entry for each of one or more teachers"),
            (["teachers"], [], "teachers is [], expected"),
            (["teachers"], [None], "teachers is [null], expected"),
            (["teachers", 0], {}, "teachers.0 is {}, expected the digest of its weights, or the fingerprint of its"),
            (["teachers", 0, "processor"], 1, "teachers.0.processor is 1, expected its settings, or null"),
            (["teachers", 0, "specialist"], {}, "teachers.0 is a specialist, expected one of all labels first"),
            (["teachers"], [GENERALIST, SPECIALIST, GENERALIST], "teachers.2 comes after a specialist and is none"),
            (["teachers", 2, "specialist", "classes"], [99], "classes is [99], expected one or more different indices"),
            (["teachers", 2, "specialist", "classes"], [0, 0], "classes is [0, 0], expected one or more different"),
            (["teachers", 2, "specialist", "classes"], [True], "classes is [true], expected one or more different"),
            (["teachers", 2, "specialist", "classes"], [0, 2], "says that teacher 3 has 3 logits, and it has 2"),
            (["teachers", 2, "specialist", "oversampling"], 0, "oversampling is 0, expected a finite number > 0"),
            (["teachers", 2, "specialist", "oversampling"], float("inf"), "oversampling is Infinity, expected"),
            (["columns"], 5, "columns is 5, expected the names of one or more columns"),
            (["columns"], [], "columns is [], expected"),
            (["labels"], "red", 'labels is "red", expected the names of the labels, or null'),
            (["level"], "words", 'level is "words", expected rows or tokens'),
            (["level"], "tokens", "says that they are of tokens, and they are of rows"),
            (["student_processor"], 5, "student_processor is 5, expected its settings, or null"),
            (["logits"], None, "logits is null, expected dtype and top_k"),
            (["logits", "top_k"], True, "logits.top_k is true, expected a whole number > 0, or null"),
            (["logits", "top_k"], 1, "says that the 1 largest of teacher 1 are kept, and all logits are"),
            (["logits"], {"dtype": "float16", "top_k": 1}, "says that they are float16, and they are float32"),
            (["about"], {"teachers": 5}, "about is {"),
        ],
    )
    def test_a_key_that_is_not_that_of_the_folder_is_refused(self, three_teachers, path, value, fault):
        """A TypeError; or a student of one teacher out of two, or of classes that nobody has meant."""
        key = json.loads(Path(FOLDER, "key.json").read_text())
        entry = key
        for part in path[:-1]:
            entry = entry[part]
        entry[path[-1]] = value
        Path(FOLDER, "key.json").write_text(json.dumps(key))
        with pytest.raises(ValueError, match=r"^teacher_logits_dir: kept: key\.json ") as found:
            trainer(None, ragged(), kept=FOLDER, teacher_logits_dtype=None)
        assert fault in str(found.value)
        assert str(found.value).endswith("; copy the folder anew, or pass teacher= with another teacher_logits_dir")

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_more_or_fewer_teachers_than_the_folder_has_are_refused(self, three_teachers, count):
        """A student that the first of them alone has taught; or an IndexError in its first step."""
        key = json.loads(Path(FOLDER, "key.json").read_text())
        key["teachers"] = [key["teachers"][0], *key["teachers"]][:count] if count > 3 else key["teachers"][:count]
        Path(FOLDER, "key.json").write_text(json.dumps(key))
        with pytest.raises(ValueError, match=f"says that they are of {count} teachers, and they are of 3"):
            trainer(None, ragged(), kept=FOLDER)

    def test_shards_of_others_among_them_are_refused(self, tmp_path):
        """Rows that another number of teachers, or another kind of rows, has given: an error of numpy's, or nothing."""
        filled()
        filled(tmp_path / "several", [tiny.bert(1, **WIDE), tiny.bert(2, **WIDE)], ragged(20))
        for shard in shards_in(tmp_path / "several"):
            shutil.copy(shard, FOLDER)
        with pytest.raises(ValueError, match="says that they are of 1 teachers, and they are of 2"):
            trainer(None, ragged(), kept=FOLDER)
        for shard in shards_in(tmp_path / "several"):
            Path(FOLDER, shard.name).unlink()
        filled(tmp_path / "half", rows=ragged(20), teacher_logits_dtype="float16")
        for shard in shards_in(tmp_path / "half"):
            shutil.copy(shard, FOLDER)
        with pytest.raises(ValueError, match="says that they are float32, and they are float16"):
            trainer(None, ragged(), kept=FOLDER)

    def test_a_key_alone_is_no_teacher(self):
        """Rows that are all missing, in a folder that has lost its files."""
        filled()
        for shard in shards_in():
            shard.unlink()
        with pytest.raises(ValueError, match=r"kept has a key\.json, and no soft targets beside it; copy the folder"):
            trainer(None, ragged(), kept=FOLDER)

    def test_a_damaged_file_is_an_error(self):
        """Its rows taught by their labels alone."""
        filled()
        (file,) = shards_in()
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(
            ValueError, match=rf"{file.name} in kept is damaged, and there is no teacher to compute them again"
        ):
            trainer(None, ragged(), kept=FOLDER)


# ---- Views ----

AUGMENTED = {"crop_padding": 2, "horizontal_flip": True, "seed": 5}


class Replayed(ImageRows):
    """Images whose augmentation begins anew every two epochs."""

    def set_epoch(self, epoch):
        super().set_epoch(epoch % 2)


class Shifted(torch.utils.data.Dataset):
    """Rows of one's own that depend on the epoch."""

    def __init__(self, period=10**6):
        self.rows, self.period, self.epoch = tiny.text_rows(9), period, 0

    def set_epoch(self, epoch):
        self.epoch = epoch % self.period

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        ids = torch.where(row["input_ids"] > 4, 5 + (row["input_ids"] + 3 * self.epoch) % 20, row["input_ids"])
        return {**row, "input_ids": ids}


class TestViews:
    def test_augmented_images_are_refused_without_views(self):
        """The soft target of one crop for all crops of an image."""
        rows = images(9, **AUGMENTED)
        with pytest.raises(ValueError, match=r"augmented anew in each epoch.*set teacher_logits_views=N"):
            trainer(tiny.vit(1), rows, student=tiny.vit(0), kept=FOLDER).train()
        assert not Path(FOLDER).exists()

    @pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_epochs_replay_the_views_that_the_teacher_saw(self, num_workers):
        """Soft targets of one view beside the image of another."""
        settings = {"student": tiny.vit(0), "num_train_epochs": 4, "dataloader_num_workers": num_workers}
        teacher = tiny.vit(1, **WIDE)
        online = trainer(teacher, Replayed(images(9).rows, "image", image_processor(), **AUGMENTED), **settings)
        online.train()
        count = Counting(teacher)
        settings["student"] = tiny.vit(0)
        made = trainer(teacher, images(9, **AUGMENTED), images(5), kept=FOLDER, teacher_logits_views=2, **settings)
        made.train()
        assert losses(made) == pytest.approx(losses(online), rel=1e-4, abs=1e-5)
        assert len(SoftTargets(Path(FOLDER))) == 2 * 9 + 5
        assert count.num_rows < 2 * 9 + 5 + 2 * 2 * 8 + 1
        one = losses(trainer_of_one_view(settings))
        assert one != pytest.approx(losses(made), rel=1e-4, abs=1e-5)

    def test_more_views_keep_those_that_are_there(self):
        """All views made anew for one more."""
        filled(
            teacher=tiny.vit(1), rows=images(9, **AUGMENTED), student=tiny.vit(0), collator=None, teacher_logits_views=1
        )
        targets = filled(
            teacher=tiny.vit(1), rows=images(9, **AUGMENTED), student=tiny.vit(0), collator=None, teacher_logits_views=3
        )
        assert len(targets) == 27
        assert len(shards_in()) == 2

    @pytest.mark.parametrize("persistent", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_rows_of_ones_own_that_are_told_the_epoch_have_views(self, persistent):
        """A worker process that lives on and has not heard of the new epoch: its rows are of another view."""
        online = trainer(tiny.bert(1, **WIDE), Shifted(period=3), num_train_epochs=5)
        online.train()
        workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True} if persistent else {}
        made = trainer(
            tiny.bert(1, **WIDE), Shifted(), kept=FOLDER, num_train_epochs=5, teacher_logits_views=3, **workers
        )
        made.train()
        assert losses(made) == pytest.approx(losses(online), rel=1e-4, abs=1e-5)

    def test_rows_of_a_worker_process_follow_the_view_that_all_share(self):
        """The same, where the worker's copy of the rows was never told of an epoch."""
        filled(rows=Shifted(), collator=None, teacher_logits_views=2)
        made = trainer(None, Shifted(), kept=FOLDER, teacher_logits_views=2)
        made.precompute_teacher_logits()
        ((_, targets),) = made.cache._rows
        workers_copy = CachedDataset(Shifted(), targets)
        expected = Shifted()
        for epoch in (1, 2, 3):
            targets.set_epoch(epoch)
            expected.set_epoch(epoch % 2)
            assert torch.equal(workers_copy[4]["input_ids"], expected[4]["input_ids"])

    def test_views_of_rows_that_never_change_are_refused(self):
        """A setting without effect."""
        with pytest.raises(
            ValueError, match="teacher_logits_views is 2, and the training rows are the same in each epoch"
        ):
            trainer(tiny.bert(1), ragged(), kept=FOLDER, collator=padding(), teacher_logits_views=2).train()

    def test_a_training_of_one_set_that_is_evaluated_too(self):
        """The evaluation's view left to the training that goes on."""
        rows = images(9, **AUGMENTED)
        made = trainer(tiny.vit(1, **WIDE), rows, rows, student=tiny.vit(0), kept=FOLDER, teacher_logits_views=2)
        made.train()
        assert made.evaluate()["eval_soft_loss"] > 0


def trainer_of_one_view(settings):
    made = trainer(
        tiny.vit(1, **WIDE),
        images(9, **AUGMENTED),
        **{**settings, "student": tiny.vit(0)},
        kept="one",
        teacher_logits_views=1,
    )
    made.train()
    return made


# ---- Never a stale value ----


def relabelled(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}


def nudged(amount=1e-3):
    teacher = tiny.bert(1, **WIDE)
    teacher.classifier.bias.data[0] += amount
    return teacher


CHANGES = {
    "other weights": (lambda: {"teacher": tiny.bert(2, **WIDE)}, r"teachers\.0\.weights is"),
    "one weight": (lambda: {"teacher": nudged()}, r"teachers\.0\.weights is"),
    "the same weights in another model": (
        lambda: {"teacher": tiny.bert(1, **WIDE, layer_norm_eps=1e-3)},
        r"teachers\.0\.config\.layer_norm_eps is 1e-12 there and 0\.001 here",
    ),
    "another class": (lambda: {"teacher": tiny.distilbert(1)}, r"teachers\.0\.class is \"BertFor"),
    "another type of the weights": (
        lambda: {"teacher_dtype": "bfloat16"},
        r'teachers\.0\.dtype is "float32" there and "bfloat16" here',
    ),
    "another strength of an adapter": (
        lambda: {"teacher": adapted(2.0)},
        r"teachers\.0\.adapters\.default is",
    ),
    "another teacher beside it": (lambda: {"teacher": [tiny.bert(1, **WIDE), tiny.bert(2)]}, "teachers is"),
    "the student's labels in another order": (
        lambda: {"student": tiny.bert(0, **relabelled("blue", "red", "green"))},
        r'labels\.0 is "red" there and "blue" here',
    ),
    "the teacher's labels in another order": (
        lambda: {"teacher": tiny.bert(1, **WIDE, **relabelled("blue", "red", "green"))},
        r"teachers\.0\.label_index is null there and \[1, 2, 0\] here",
    ),
    "mixed precision": (lambda: {"bf16": True}, r'autocast is null there and "bfloat16" here'),
    "the type of what is kept": (
        lambda: {"teacher_logits_dtype": "float16"},
        r'logits\.dtype is "float32" there and "float16" here',
    ),
    "how much of it is kept": (lambda: {"teacher_logits_top_k": 1}, r"logits\.top_k is null there and 1 here"),
    "the student's tokenizer": (
        lambda: {"processing_class": left_handed()},
        r'student_processor\.padding_side is "right" there and "left" here',
    ),
    "a column": (
        lambda: {"rows": ragged().map(lambda row: {"token_type_ids": [1] * len(row["input_ids"])})},
        "columns is",
    ),
}


def left_handed():
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer


def adapted(alpha=1.0):
    adapter = LoraConfig(task_type="SEQ_CLS", lora_alpha=alpha, r=2, init_lora_weights=False)
    return get_peft_model(tiny.bert(1, **WIDE), adapter)


class TestNeverStale:
    def test_the_strength_of_an_adapter_counts(self):
        """The same weights, of which some are added with another factor."""
        torch.manual_seed(0)
        filled(teacher=adapted())
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=r"teachers\.0\.adapters\.default\.lora_alpha is 1\.0 there and 2\.0 here"):
            filled(teacher=adapted(2.0))

    @pytest.mark.parametrize("change", CHANGES)
    def test_soft_targets_made_in_another_way_are_refused(self, change):
        """Another teacher's soft targets, or in another order, without a word."""
        filled(processing_class=tiny.tokenizer())
        known = [file.read_bytes() for file in shards_in()]
        changed, message = CHANGES[change]
        settings = {
            "teacher": tiny.bert(1, **WIDE),
            "rows": ragged(),
            "collator": padding(),
            "processing_class": tiny.tokenizer(),
            **changed(),
        }
        with pytest.raises(ValueError, match=message) as caught:
            trainer(kept=FOLDER, **settings).train()
        assert "Set another teacher_logits_dir, or delete that folder" in str(caught.value)
        assert [file.read_bytes() for file in shards_in()] == known

    def test_teachers_in_another_order_and_other_specialists_are_refused(self):
        """One member's weight given to another's soft targets; a dustbin that is corrected for other data."""
        teachers = [tiny.bert(1, **WIDE), tiny.bert(2, **WIDE)]
        filled(teacher=teachers)
        with pytest.raises(ValueError, match=r"teachers\.0\.weights is .*teachers\.1\.weights is"):
            trainer(teachers[::-1], ragged(), kept=FOLDER, collator=padding()).train()
        filled("special", [teachers[0], special(3, "red", "dustbin")])
        other = Specialist(special(3, "red", "dustbin").model, oversampling=4.0)
        with pytest.raises(ValueError, match=r"specialist\.oversampling is 3\.0 there and 4\.0 here"):
            trainer([teachers[0], other], ragged(), kept="special", collator=padding()).train()

    def test_a_teachers_own_processor_counts(self):
        """Another maximum length or vocabulary for the same sentences."""
        teacher, rows, settings = CASES["a tokenizer of its own"]()
        filled(teacher=teacher, rows=rows, **settings)
        with pytest.raises(ValueError, match=r"teachers\.0\.max_length is 32 there and 7 here"):
            trainer(teacher, rows, kept=FOLDER, **settings, teacher_max_length=7).train()
        other = {**settings, "teacher_processing_class": byte_level(model_max_length=32, pad_token="<mask>")}
        with pytest.raises(ValueError, match=r"teachers\.0\.processor\.special_tokens\.pad_token is"):
            trainer(teacher, rows, kept=FOLDER, **other).train()
        # The student's tokenizer is not read by such a teacher, so that another student may have these soft targets.
        student = {**settings, "processing_class": left_handed(), "student": tiny.bert(0)}
        trainer(teacher, rows, kept=FOLDER, **student).precompute_teacher_logits()

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 2.0},
            {"alpha": 0.7},
            {"seed": 7},
            {"per_device_train_batch_size": 2},
            {"student": tiny.bert(5, num_layers=1)},
            {"processing_class": None},
        ],
    )
    @pytest.mark.usefixtures("uncompared")
    def test_what_does_not_touch_the_logits_does_not_matter(self, settings):
        """A cache that is made anew for each temperature."""
        filled()
        teacher = tiny.bert(1, **WIDE)
        count = Counting(teacher)
        trainer(teacher, ragged(), kept=FOLDER, collator=padding(), **settings).precompute_teacher_logits()
        assert count.num_rows == 0

    def test_a_teacher_that_was_saved_and_loaded_is_the_same_teacher(self, tmp_path):
        """The folder that it came from taken for a part of it."""
        tiny.bert(1, **WIDE).save_pretrained(tmp_path / "teacher")
        filled(teacher=str(tmp_path / "teacher"))
        filled(teacher=tiny.bert(1, **WIDE))
        assert str(tmp_path) not in Path(FOLDER, "key.json").read_text()
        assert len(shards_in()) == 1

    def test_rows_prepared_in_another_way_are_other_rows(self):
        """Truncated texts with the soft targets of whole ones."""
        filled()
        shorter = ragged().map(lambda row: {name: row[name][:3] for name in ("input_ids", "attention_mask")})
        made = trainer(tiny.bert(1, **WIDE), shorter, kept=FOLDER, collator=padding())
        made.precompute_teacher_logits()
        found = brought(made, shorter)
        teacher = tiny.bert(1, **WIDE).eval()
        for ids, logits in found.items():
            expected = teacher(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int))
            assert torch.allclose(torch.tensor(logits), expected.logits[0], atol=1e-5)
        with pytest.raises(ValueError, match="rows have no cached soft targets"):
            trainer(None, ragged(20).select(range(13, 20)), kept=FOLDER, collator=padding()).train()

    def test_a_collator_that_makes_something_else_of_the_rows_is_found_out(self):
        """The one thing that neither the rows nor the key can tell."""
        filled()

        def clipping(rows):
            return padding()([{**row, "input_ids": [min(token, 8) for token in row["input_ids"]]} for row in rows])

        with pytest.raises(ValueError, match=r"differ from the teacher's of these rows now .* the data collator, or"):
            trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, collator=clipping).train()

    def test_a_collator_that_draws_random_numbers_is_refused(self):
        """One answer kept to rows that are others in each epoch; a hint at padding, which is not the reason."""
        generator = torch.Generator().manual_seed(0)

        def noisy(rows):
            batch = padding()(rows)
            drawn = torch.randint(5, 12, batch["input_ids"].shape, generator=generator)
            return {**batch, "input_ids": drawn * batch["attention_mask"]}

        made = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, collator=noisy)
        with pytest.raises(ValueError, match=r"two forward passes of the same row differ .* draws random numbers"):
            made.precompute_teacher_logits()
        assert made.teacher is not None

    def test_a_pair_in_another_order_is_another_text(self):
        """Premise and hypothesis: rows known by their columns' names say nothing of which the teacher reads first."""
        rows = sentence_rows()
        rows = rows.add_column("second", [f"{text} {text}" for text in rows["text"]])
        given = own_tokenizer(collator=padding())

        def filled_from(*columns):
            teacher = tiny.bert(1, **WIDE, vocab_size=400)
            made = trainer(teacher, rows, kept=FOLDER, teacher_input_columns=list(columns), **given)
            made.precompute_teacher_logits()

        filled_from("text", "second")
        filled_from("text", "second")
        with pytest.raises(ValueError, match=r'teacher_columns.0 is "text" there and "second" here'):
            filled_from("second", "text")

    def test_a_teacher_that_depends_on_the_batch_is_warned_of(self):
        """Soft targets of a row that are another batch's: padding that is not masked."""

        def unmasked(rows):
            return {name: value for name, value in padding()(rows).items() if name != "attention_mask"}

        made = trainer(tiny.bert(1, **WIDE), ragged(), kept=FOLDER, collator=unmasked)
        with pytest.warns(UserWarning, match="depend on the other rows of its batch, by up to"):
            made.precompute_teacher_logits()


# ---- Refusals ----


class TestRefusing:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"teacher_logits_dtype": "bfloat16"},
                "teacher_logits_dtype must be one of float16, float32, got 'bfloat16'",
            ),
            ({"teacher_logits_top_k": 0}, "teacher_logits_top_k must be a whole number > 0, got 0"),
            ({"teacher_logits_views": True}, "teacher_logits_views must be a whole number > 0, got True"),
            ({"teacher_logits_batch_size": 1.5}, r"teacher_logits_batch_size must be a whole number > 0, got 1\.5"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        """A folder full of what nobody can read."""
        with pytest.raises(ValueError, match=message):
            DistillationConfig("out", precompute_teacher_logits=True, **settings)

    @pytest.mark.parametrize(
        "name",
        ["dir", "dtype", "top_k", "views", "batch_size"],
    )
    def test_settings_without_effect_are_refused(self, name):
        """A folder that is named and never written."""
        value = {"dir": "there", "dtype": "float16"}.get(name, 3)
        with pytest.raises(ValueError, match=f"teacher_logits_{name} has no effect without precompute_teacher_logits"):
            DistillationConfig("out", **{f"teacher_logits_{name}": value})

    def test_a_column_of_soft_targets_is_not_kept_twice(self):
        """Two answers."""
        rows = ragged().add_column("teacher_logits", [[0.0, 1.0, 2.0]] * 13)
        with pytest.raises(ValueError, match="the data have soft targets already, in teacher_logits: leave it out"):
            trainer(None, rows, kept=FOLDER)

    def test_a_function_needs_a_name(self):
        """A function of the same name that says something else."""
        with pytest.raises(ValueError, match="the teacher is a function, and nothing tells it from another one"):
            trainer(lambda batch: batch["input_ids"][:, :3].float(), ragged(), kept=FOLDER)
        filled(teacher=Function(tiny.bert(1, **WIDE)), rows=tiny.text_rows(9), collator=None)
        other = Function(tiny.bert(2, **WIDE))
        other.fingerprint = "two"
        with pytest.raises(ValueError, match=r'teachers\.0\.function is "one" there and "two" here'):
            trainer(other, tiny.text_rows(9), kept=FOLDER).train()

    def test_a_stream_is_refused(self):
        """Rows that are gone when they have been read."""
        rows = ragged().to_iterable_dataset()
        with pytest.raises(ValueError, match=r"come as a stream .* leave precompute_teacher_logits out"):
            trainer(tiny.bert(1), rows, kept=FOLDER, collator=padding(), max_steps=2).train()

    def test_rows_that_are_others_each_time_are_refused(self):
        """The soft targets of a crop that nobody will see again."""
        rows = ragged().with_transform(
            lambda batch: {**batch, "input_ids": [np.random.permutation(ids).tolist() for ids in batch["input_ids"]]}
        )
        for more in ({}, {"teacher_logits_views": 2}):
            with pytest.raises(ValueError, match=r"others each time that they are read.*set_epoch"):
                trainer(tiny.bert(1), rows, kept=FOLDER, collator=padding(), **more).train()

    def test_a_row_that_changes_between_two_readings_is_found(self):
        """A data set that changes too seldom to be noticed at first."""

        class Seldom(torch.utils.data.Dataset):
            rows, num_reads = tiny.text_rows(9), 0

            def __len__(self):
                return len(self.rows)

            def __getitem__(self, index):
                self.num_reads += 1
                row = self.rows[index]
                return {**row, "input_ids": row["input_ids"].flip(0)} if index == 4 and self.num_reads > 30 else row

        rows = Seldom()
        with pytest.raises(ValueError, match="row 4 of the data was another one when it was read again"):
            trainer(tiny.bert(1), rows, kept=FOLDER).train()

    @pytest.mark.parametrize("number", [torch.nan, torch.inf])
    def test_logits_that_are_no_numbers_are_refused(self, number):
        """NaN that is kept, and found out by the student."""
        teacher = tiny.bert(1)
        teacher.classifier.bias.data[1] = number
        with pytest.raises(ValueError, match="the teacher's logits are NaN or infinite"):
            filled(teacher=teacher)
        assert not shards_in()

    def test_logits_out_of_the_range_of_half_precision_are_refused(self):
        """Infinity in the place of a large number."""
        teacher = tiny.bert(1)
        teacher.classifier.bias.data[1] = 1e5
        with pytest.raises(ValueError, match="float16 ends at 65504: set teacher_logits_dtype to float32"):
            filled(teacher=teacher, teacher_logits_dtype="float16")
        filled(teacher=teacher)

    def test_top_k_is_of_classes_that_exclude_each_other_and_saves_something(self):
        """Probabilities that do not sum to 1, of which the rest is shared out."""
        problem = {"problem_type": "multi_label_classification"}
        with pytest.raises(ValueError, match="multi_label_classification has none: leave it out"):
            filled(
                teacher=tiny.bert(1, **problem),
                rows=tiny.text_rows(5, "multi"),
                student=tiny.bert(0, **problem),
                teacher_logits_top_k=1,
            )
        with pytest.raises(ValueError, match="teacher_logits_top_k is 2, and of 3 labels at most 1 can be kept"):
            filled(teacher_logits_top_k=2)

    def test_a_folder_of_other_files_is_left_alone(self):
        """Someone's results among which shards are strewn."""
        Path(FOLDER).mkdir()
        Path(FOLDER, "thesis.tex").touch()
        with pytest.raises(ValueError, match=r"has no key\.json and holds thesis\.tex"):
            filled()
        assert os.listdir(FOLDER) == ["thesis.tex"]


# ---- Faults ----


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 KiB, which can be made larger or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def check_all(folder, rows) -> None:
    """See that each row has the soft targets that the teacher gives."""
    teacher = tiny.bert(1, **WIDE).eval()
    made = trainer(None, rows, kept=folder, collator=padding())
    found = brought(made, rows)
    assert len(found) == len({tuple(row["input_ids"]) for row in rows})
    with torch.no_grad():
        for ids, logits in found.items():
            expected = teacher(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int))
            assert torch.allclose(torch.tensor(logits), expected.logits[0], atol=1e-5)


NUM_ROWS = 40


def start(mode: str, folder: Path, note: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, mode, str(folder), str(note)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def await_(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("uncompared")
class TestFaults:
    @pytest.mark.slow
    def test_killed_in_the_middle_of_a_shard_it_goes_on_at_the_last_whole_one(self, tmp_path):
        """Half a shard read as a whole; or all of a night's work done again."""
        folder = tmp_path / FOLDER
        process = start("stuck", folder, tmp_path / "note")
        await_(lambda: len(shards_in(folder)) == 3 and list(folder.glob("*.safetensors.*.part")), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(shards_in(folder)) == 3
        assert asked(ragged(NUM_ROWS), folder=folder) == NUM_ROWS - 15
        assert not list(folder.glob("*.part"))
        check_all(folder, ragged(NUM_ROWS))

    @pytest.mark.parametrize("damage", ["truncated", "flipped"])
    def test_a_damaged_shard_is_made_again(self, damage):
        """Soft targets that nobody has given; or all of them made again for a few."""
        rows = ragged(NUM_ROWS)
        filled(rows=rows.select(range(25)))
        (first,) = shards_in()
        filled(rows=rows)
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content if damage == "flipped" else content[:-20])
        assert asked(rows) == 25
        assert len(shards_in()) == 2
        check_all(FOLDER, rows)

    @pytest.mark.slow
    def test_two_builders_share_a_folder_one_after_the_other(self, tmp_path):
        """Files that one of them removes while the other writes; or twice the work."""
        folder = tmp_path / FOLDER
        started = [start("slow", folder, tmp_path / f"note-{number}") for number in range(2)]
        said = [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        counts = sorted(int((tmp_path / f"note-{number}").read_text()) for number in range(2))
        assert counts == [0, NUM_ROWS]
        assert sum("waiting for process" in text for text in said) <= 1
        check_all(folder, ragged(NUM_ROWS))

    def test_a_folder_that_can_only_be_read_is_enough_if_it_is_complete(self, small_disk):
        """A shared folder that no one may learn from; or a teacher that is run for an hour, and nowhere to write."""
        rows = ragged(NUM_ROWS)
        filled(small_disk / FOLDER, rows=rows)
        remount(small_disk, "ro")
        made = trainer(tiny.bert(1, **WIDE), rows, kept=small_disk / FOLDER, collator=padding(), max_steps=2)
        made.train()
        teacher = tiny.bert(1, **WIDE)
        count = Counting(teacher)
        made = trainer(teacher, ragged(NUM_ROWS + 3), kept=small_disk / FOLDER, collator=padding())
        with pytest.raises(
            ValueError, match=r"cannot write to .*: Read-only file system\..* 3 rows have no soft targets there"
        ):
            made.train()
        assert count.num_rows == 0

    def test_a_full_disk_is_an_error_that_leaves_what_was_there(self, small_disk, monkeypatch):
        """Half a shard; or the whole folder unusable."""
        monkeypatch.setattr(shards, "_FLUSH_BYTES", 0)  # a shard of each batch
        rows = ragged(NUM_ROWS)
        with pytest.raises(
            ValueError, match=r"disk of .* is full: what was written is whole and is kept, so make room"
        ):
            filled(small_disk / FOLDER, rows=rows, teacher_logits_batch_size=5)
        written = len(SoftTargets(small_disk / FOLDER))  # batches of five, however many went into one shard
        assert 0 < written < NUM_ROWS
        assert written % 5 == 0
        assert not list((small_disk / FOLDER).glob("*.part"))
        remount(small_disk, "size=1m")
        assert asked(rows, folder=small_disk / FOLDER, teacher_logits_batch_size=5) == NUM_ROWS - written
        check_all(small_disk / FOLDER, rows)

    def test_a_disk_that_is_too_small_is_found_out_after_one_batch(self, small_disk):
        """Hours of a teacher's work before the error."""
        teacher = tiny.bert(1, **WIDE)
        count = Counting(teacher)
        (small_disk / "other").write_bytes(bytes(20 * 1024))
        rows = [{"input_ids": [place // 50 + 5, place % 50 + 5], "labels": 0} for place in range(400)]
        teacher.resize_token_embeddings(60)
        with pytest.raises(ValueError, match=r"take about 0\.0 MiB, and the disk of .* has 0\.0 MiB: make room"):
            filled(small_disk / FOLDER, teacher, rows, student=tiny.bert(0, vocab_size=60), collator=None)
        assert count.num_rows == 32  # one more is on its way then


# ---- Several processes ----

KINDS = ("rows", "tokens", "sharded")


def train_in_processes(kind: str, batch_size: int, folder: Path) -> None:
    is_tokens = kind == "tokens"
    rows = ragged(29, "token" if is_tokens else "single")
    teacher = (tiny.bert_for_tokens if is_tokens else tiny.bert)(1, **WIDE)
    count = Counting(teacher)
    tokenizer = tiny.tokenizer()
    made = trainer(
        teacher,
        rows,
        rows.select(range(7)),
        kept=folder / "kept" / kind,
        student=tiny.bert_for_tokens(0) if is_tokens else tiny.bert(0),
        collator=(DataCollatorForTokenClassification if is_tokens else DataCollatorWithPadding)(tokenizer),
        output_dir=str(folder / "out"),
        per_device_train_batch_size=batch_size,
        teacher_logits_batch_size=6,
        teacher_placement="sharded" if kind == "sharded" and "WORLD_SIZE" in os.environ else "same",
    )
    made.train()
    evaluation = made.evaluate()
    numbers = {"losses": losses(made), "eval_soft_loss": evaluation["eval_soft_loss"], "asked": count.num_rows}
    (folder / f"{kind}-{made.args.process_index}.json").write_text(json.dumps(numbers))


@pytest.mark.slow
def test_two_processes_share_the_work_and_each_reads_all_of_it(tmp_path):
    """A process that trains on the half that it has asked about; or all rows asked about in each."""
    several, one = tmp_path / "several", tmp_path / "one"
    several.mkdir()
    one.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "train", str(several)]
    subprocess.run([sys.executable, *command, "-"], check=True)
    for kind in KINDS:
        train_in_processes(kind, 8, one)
        expected = json.loads((one / f"{kind}-0.json").read_text())
        found = [json.loads((several / f"{kind}-{process}.json").read_text()) for process in range(2)]
        assert found[0]["losses"] == pytest.approx(expected["losses"], rel=1e-4, abs=1e-5), kind
        assert found[0]["eval_soft_loss"] == pytest.approx(expected["eval_soft_loss"], rel=1e-4, abs=1e-5), kind
        compared = 3 * (4 + 4)  # twice alone and once together, of each data set
        num_rows = expected["asked"] - compared
        rows = ragged(29, "token" if kind == "tokens" else "single")
        assert num_rows == len({tuple(row["input_ids"]) for row in rows})  # two of the tokens' rows are alike
        # Of five batches the second process has two; where all must run the teacher equally often, one of them again.
        of_each = [num_rows - 12, 18 if kind == "sharded" else 12]
        assert [each["asked"] - compared for each in found] == of_each
        assert len(shards_in(several / "kept" / kind)) == 2


@pytest.mark.slow
def test_processes_that_share_no_folder_are_told(tmp_path):
    """A training of one process on half of the soft targets, and of the other on none."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "apart", str(tmp_path)]
    run = subprocess.run([sys.executable, *command, "-"], capture_output=True, text=True)
    assert run.returncode != 0
    assert "and this one does not see them: the folder must be one that all machines share" in run.stderr


@pytest.mark.slow
def test_processes_wait_together_for_another_builder(tmp_path):
    """All but the main process hear nothing of it and give up, while a large teacher is at work elsewhere."""
    (tmp_path / FOLDER).mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "wait", str(tmp_path)]
    with FileLock(tmp_path / FOLDER / ".lock"):
        process = subprocess.Popen(
            [sys.executable, *command, "-"],
            stderr=subprocess.PIPE,
            text=True,
        )
        await_(lambda: all(len(signs(tmp_path, number)) >= 4 for number in range(2)), process)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "waiting for" in said
    assert len(SoftTargets(tmp_path / FOLDER)) == 13


def signs(folder: Path, process: int) -> str:
    file = folder / f"signs-{process}"
    return file.read_text() if file.exists() else ""


def main(mode: str, folder: Path, note: str) -> None:
    if mode == "wait":
        shards._SECONDS_BETWEEN_SIGNS = 0.5
        made = trainer(tiny.bert(1), ragged(), kept=folder / FOLDER, collator=padding())
        agree = CacheBuilder._is_so_for_any

        def noted(cache, flag):
            answer = agree(cache, flag)
            with (folder / f"signs-{made.args.process_index}").open("a") as file:
                file.write("+" if answer else "-")
            return answer

        CacheBuilder._is_so_for_any = noted
        made.precompute_teacher_logits()
        shutdown_processes()
        return
    if mode == "train":
        for kind in KINDS:
            train_in_processes(kind, 4, folder)
        shutdown_processes()
        return
    if mode == "apart":
        trainer(tiny.bert(1), ragged(), kept=folder / os.environ["RANK"], collator=padding()).train()
        return
    shards._FLUSH_BYTES = 0
    CacheBuilder._compare = lambda *_: None
    teacher = tiny.bert(1, **WIDE)
    count = Counting(teacher)
    teacher.register_forward_hook(lambda *_: time.sleep(0.2))
    if mode == "stuck":
        fsync = os.fsync

        def stuck(descriptor: int) -> None:
            if len(shards_in(folder)) == 3 and list(folder.glob("*.part")):
                time.sleep(600)
            fsync(descriptor)

        os.fsync = stuck
    filled(folder, teacher, ragged(NUM_ROWS), teacher_logits_batch_size=5)
    Path(note).write_text(str(count.num_rows))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
