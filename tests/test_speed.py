"""What makes a step fast must change nothing but the time."""

import os
import shutil
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import RandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.training.sampler import EpochLengthGroupedSampler


def made(student=None, teacher=None, rows=None, **settings) -> Any:
    """Make a trainer of tiny models, quiet and on the CPU."""
    arguments = {
        "train_dataset": tiny.text_rows(16) if rows is None else rows,
        "eval_dataset": settings.pop("eval_rows", None),
        "data_collator": settings.pop("collator", None),
        "processing_class": settings.pop("processing_class", None),
        "callbacks": settings.pop("callbacks", None),
    }
    config = DistillationConfig(
        "out",
        **{
            "use_cpu": True,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "logging_steps": 1,
            "allow_untrained_teacher": True,
            **settings,
        },
    )
    student = tiny.bert(0) if student is None else student
    teacher = tiny.bert(1, initializer_range=0.3) if teacher is None and config.uses_teacher else teacher
    trainer = DistillationTrainer(student, teacher, config, **arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer) -> list[float]:
    """Train, and return the loss of each step."""
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def texts(count: int = 40) -> Dataset:
    """Make rows of several lengths."""
    rows = []
    for place in range(count):
        length = 2 + (place * 7) % 9
        rows.append({"input_ids": [5 + place % 15] * length, "attention_mask": [1] * length, "labels": place % 3})
    return Dataset.from_list(rows)


class TestBatches:
    """Rows of like length make batches without padding."""

    def test_texts_are_grouped_by_length_unless_something_else_is_asked_for(self):
        """With random batches two thirds of what is computed on SST-2 is padding."""
        collator = DataCollatorWithPadding(tiny.tokenizer())

        def sampler(rows, **settings):
            return made(rows=rows, collator=collator, **settings)._get_train_sampler()

        assert isinstance(sampler(texts()), EpochLengthGroupedSampler)
        assert isinstance(sampler(texts(), train_sampling_strategy="random"), RandomSampler)
        assert isinstance(sampler(texts(), train_sampling_strategy="group_by_length"), EpochLengthGroupedSampler)

    def test_grouped_batches_have_less_padding_and_lose_no_row(self):
        """A sampler that drops or repeats rows trains on other data, with no error."""

        def batches(strategy):
            trainer = made(
                rows=texts(),
                collator=DataCollatorWithPadding(tiny.tokenizer()),
                train_sampling_strategy=strategy,
            )
            return list(trainer.get_train_dataloader())

        def padding(batches):
            return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)

        def rows(batches):
            return sorted(tuple(row[row != 0].tolist()) for batch in batches for row in batch["input_ids"])

        grouped, random = batches("auto"), batches("random")
        assert padding(grouped) < 0.6 * padding(random)
        assert rows(grouped) == rows(random)

    def test_rows_whose_lengths_would_have_to_be_read_are_not_grouped(self):
        """To measure rows that are tokenised when they are read doubles the work; of images there is no length."""
        assert isinstance(made(rows=tiny.text_rows(8))._get_train_sampler(), RandomSampler)
        lazy = texts()
        lazy.set_transform(lambda batch: batch)
        assert isinstance(made(rows=lazy)._get_train_sampler(), RandomSampler)
        images = Dataset.from_list([{"pixel_values": torch.zeros(3, 8, 8).tolist(), "length": 3, "labels": 0}] * 4)
        assert isinstance(made(tiny.vit(0), tiny.vit(1), images)._get_train_sampler(), RandomSampler)

    def test_an_unknown_strategy_is_refused(self):
        """The parent takes any word it does not know for random."""
        with pytest.raises(ValueError, match="train_sampling_strategy must be one of auto, random"):
            DistillationConfig("out", train_sampling_strategy="grouped")


class _Waits(TorchDispatchMode):
    """Count the times that a value is read from the device, from the first step on."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.counts = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.counts and function is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return function(*args, **(kwargs or {}))

    def not_counted(self, function):
        """Return a function in which nothing is counted: what is read from the CPU's memory."""

        def call(*args):
            before, self.counts = self.counts, False
            try:
                return function(*args)
            finally:
                self.counts = before

        return call


class _CountSteps(TrainerCallback):
    """Count from the second step's beginning to the end of the last but one, without the optimizer's own step."""

    def __init__(self, waits: _Waits, num_steps: int) -> None:
        self.waits = waits
        self.num_steps = num_steps

    def on_step_begin(self, args, state, control, **kwargs):
        self.waits.counts = 1 <= state.global_step < self.num_steps - 1

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.waits.counts = False  # AdamW reads its own step counter, which lives on the CPU

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.waits.counts = 1 <= state.global_step < self.num_steps - 1


class TestNoWaiting:
    """A value that is read from the GPU in each step has the CPU wait for it, and the GPU then for the CPU."""

    @pytest.mark.parametrize("kept", [False, True])
    def test_a_step_reads_nothing_from_the_device(self, kept, monkeypatch):
        """One look at the loss in each step is enough to lose what overlaps."""
        # All in one epoch. Transformers' own text models look at the mask in each forward.
        rows = Dataset.from_list(tiny.image_rows(24)).with_format("torch")

        fetch = _BaseDataLoaderIter.__next__

        def count(**settings):
            waits = _Waits()
            counter = _CountSteps(waits, 6)
            monkeypatch.setattr(_BaseDataLoaderIter, "__next__", waits.not_counted(fetch))
            models = tiny.vit(0), tiny.vit(1, initializer_range=0.3)
            trainer = made(*models, rows, callbacks=[counter], logging_steps=100, **settings)
            with waits:
                trainer.train()
            return waits.count

        assert count(precompute_teacher_logits=kept) == 0
        assert count(precompute_teacher_logits=kept, logging_nan_inf_filter=True) >= 4  # the counter counts

    def test_a_loss_that_was_nan_once_is_a_number_again_in_the_next_log(self):
        """The parent subtracts the logged sum from itself: NaN would stay NaN to the end, in train_loss too."""

        class Spoilt(DistillationTrainer):
            def compute_loss(self, *args, **kwargs):
                return super().compute_loss(*args, **kwargs) * (float("nan") if self.state.global_step == 2 else 1)

        plain = made()
        trainer = Spoilt(
            tiny.bert(0), plain.teacher, plain.args, train_dataset=tiny.text_rows(16), callbacks=[_RestoreWeights()]
        )
        trainer.remove_callback(PrinterCallback)
        found = losses(trainer)
        assert [loss != loss for loss in found] == [False, False, True, False, False, False]


class _RestoreWeights(TrainerCallback):
    """Undo each step, so that a NaN loss has no after-effect in the weights."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.load_state_dict(self.weights)


def test_operations_are_estimated_as_the_parent_does():
    """Counted once instead of at each step, the number must not change with the batch, nor come from another model."""
    trainer = made(rows=texts(), collator=DataCollatorWithPadding(tiny.tokenizer()))
    seen = []

    class Both(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            for batch in trainer.get_train_dataloader():
                seen.append((trainer.floating_point_ops(batch), Trainer.floating_point_ops(trainer, batch)))

    trainer.add_callback(Both())
    trainer.train()
    assert len({ours for ours, _ in seen}) > 1
    assert all(ours == theirs for ours, theirs in seen)
    assert trainer.floating_point_ops({"other": torch.zeros(3)}) == 0


class TestCompiling:
    """torch.compile makes other code of the models, with the same results."""

    @pytest.mark.slow
    @pytest.mark.parametrize("kept", [False, True])
    def test_compiled_models_train_as_plain_ones(self, kept):
        """A compiled teacher in training mode, or one that is not the one asked, teaches something else."""
        plain = losses(made(precompute_teacher_logits=kept))
        torch._dynamo.utils.counters.clear()
        compiled = made(torch_compile_backend="eager", teacher_torch_compile=True, precompute_teacher_logits=kept)
        assert losses(compiled) == pytest.approx(plain, rel=1e-5)
        assert torch._dynamo.utils.counters["frames"]["ok"] >= 1

    def test_the_teacher_alone_is_compiled_where_that_alone_is_asked_for(self, monkeypatch):
        """An option without effect costs nobody anything, and gains nothing."""
        compiled = []
        compile = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda model, **how: compiled.append((model, how)) or compile(model, backend="eager")
        )
        plain = losses(made())
        assert not compiled
        trainer = made(teacher_torch_compile=True)
        assert losses(trainer) == pytest.approx(plain, rel=1e-5)
        assert compiled == [(trainer.teacher, {"backend": "inductor", "mode": None})]

    @pytest.mark.slow
    @pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within torch
    def test_by_the_default_compiler(self):
        """Inductor fuses operations, which `eager` does not."""
        plain = losses(made(rows=texts(), collator=DataCollatorWithPadding(tiny.tokenizer())))
        compiled = made(
            rows=texts(),
            collator=DataCollatorWithPadding(tiny.tokenizer()),
            teacher_torch_compile=True,
        )
        assert losses(compiled) == pytest.approx(plain, rel=1e-4)

    def test_a_saved_student_has_the_names_of_a_plain_one(self, tmp_path):
        """torch.compile puts _orig_mod before every name, and from_pretrained then starts from random weights."""
        trainer = made(torch_compile_backend="eager")
        trainer.train()
        trainer.save_model(str(tmp_path / "student"))
        loaded = type(trainer.model).from_pretrained(tmp_path / "student")
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name

    @pytest.mark.parametrize(
        "settings", [{"teacher_placement": "auto"}, {"teacher_placement": "sharded"}, {"teacher_quantization": "4bit"}]
    )
    def test_what_cannot_be_compiled_is_refused(self, settings):
        """Hooks that move weights about break a compiled graph, at each layer."""
        with pytest.raises(ValueError, match="teacher_torch_compile does not go with"):
            DistillationConfig("out", teacher_torch_compile=True, **settings)
