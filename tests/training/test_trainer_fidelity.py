"""`DistillationTrainer` where it must be what `Trainer` is: signatures, subclasses, searches, logs."""

import inspect
import warnings
from typing import Any

import optuna
import pytest
import tiny
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_distill import DistillationConfig, DistillationTrainer

optuna.logging.set_verbosity(optuna.logging.ERROR)

ROWS = [{**row, "labels": torch.tensor(place % 3)} for place, row in enumerate(tiny.text_rows(24, "none"))]


def config(**settings: Any) -> DistillationConfig:
    fixed = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return DistillationConfig("out", **{**fixed, "allow_untrained_teacher": True, **settings})


def made(kind: type = DistillationTrainer, teacher: Any = None, args: Any = None, **arguments: Any) -> Any:
    """Make a trainer of a tiny student, with rows to train and to evaluate."""
    if "model_init" not in arguments:
        arguments = {"model": tiny.bert(1), **arguments}
    arguments = {"train_dataset": ROWS, "eval_dataset": ROWS, **arguments}
    taught = {"teacher": teacher} if issubclass(kind, DistillationTrainer) else {}
    trainer = kind(args=args or config(), **taught, **arguments)
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_methods_take_what_those_of_trainer_take():
    """Positional arguments that `Trainer` takes end in a TypeError, or mean something else."""
    compared = []
    for kind in DistillationTrainer.__mro__[: DistillationTrainer.__mro__.index(Trainer)]:
        for name, method in vars(kind).items():
            of_trainer = getattr(Trainer, name, None)
            if not name.startswith("_") and inspect.isfunction(method) and inspect.isfunction(of_trainer):
                ours, theirs = (inspect.signature(each).parameters.values() for each in (method, of_trainer))
                assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], (
                    name
                )
                compared.append(name)
    assert {"compute_loss", "train", "evaluation_loop", "log", "push_to_hub", "hyperparameter_search"} <= {*compared}
    assert len(compared) > 12


class TestSubclasses:
    class Adding(DistillationTrainer):
        """Adds ten to the loss."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return (loss + 10, outputs) if return_outputs else loss + 10

    @pytest.mark.parametrize("alpha", [1.0, 0.5])
    def test_what_a_subclass_adds_is_in_every_loss(self, alpha):
        """The best model, early stopping and plateau schedules go by a loss without it."""
        teacher = None if alpha == 1 else tiny.bert(2)
        plain, adding = (
            made(kind, teacher, config(alpha=alpha, logging_steps=1, max_steps=1, learning_rate=0.0))
            for kind in (DistillationTrainer, self.Adding)
        )
        for trainer in (plain, adding):
            trainer.train()
        assert logged(adding, "loss") == pytest.approx([value + 10 for value in logged(plain, "loss")])
        assert adding.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"] + 10)
        assert adding.predict(ROWS).metrics["test_loss"] == pytest.approx(plain.predict(ROWS).metrics["test_loss"] + 10)

    def test_the_loss_of_two_views_of_a_batch_is_evaluated_once(self):
        """A subclass that computes our loss twice: rows that count twice."""

        class Twice(DistillationTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                first, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
                second = super().compute_loss(model, inputs, False, num_items_in_batch)
                return (first + second, outputs) if return_outputs else first + second

        plain, twice = (made(kind, tiny.bert(2)).evaluate()["eval_loss"] for kind in (DistillationTrainer, Twice))
        assert twice == pytest.approx(2 * plain)

    @staticmethod
    def grad_norms(kind: type, model: Any, accumulation: int) -> list[float]:
        settings = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
        settings |= {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
        if issubclass(kind, DistillationTrainer):
            args: Any = config(alpha=1.0, **settings)
        else:
            args = TrainingArguments("out", report_to=[], use_cpu=True, disable_tqdm=True, **settings)
        trainer = made(kind, args=args, model=model)
        trainer.train()
        return logged(trainer, "grad_norm")

    def test_a_loss_divided_by_the_number_of_labels_is_that_of_the_full_batch(self):
        """Two numbers in the place of one: a RuntimeError, or a loss that is a vector."""

        class Divided(DistillationTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                logits = model(**inputs).logits
                loss = F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
                return (loss, {"logits": logits}) if return_outputs else loss

        assert self.grad_norms(Divided, tiny.bert(1), 4) == pytest.approx(self.grad_norms(Divided, tiny.bert(1), 1))
        assert made(Divided, args=config(alpha=1.0)).evaluate()["eval_loss"] > 0

    @pytest.mark.slow
    def test_a_batch_mean_of_a_subclass_is_scaled_as_trainer_does(self):
        """A gradient that is too large by gradient_accumulation_steps."""

        def averaged(kind: type) -> type:
            class Averaged(kind):
                def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                    labels = inputs.pop("labels")
                    logits = model(**inputs)["logits"]
                    loss = F.cross_entropy(logits, labels)
                    return (loss, {"logits": logits}) if return_outputs else loss

            return Averaged

        class NoKwargs(torch.nn.Module):
            main_input_name = "input_ids"

            def __init__(self) -> None:
                super().__init__()
                self.bert = tiny.bert(1)
                self.config = self.bert.config

            def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
                return {"logits": self.bert(input_ids=input_ids, attention_mask=attention_mask).logits}

        full, ours = (self.grad_norms(averaged(DistillationTrainer), NoKwargs(), steps) for steps in (1, 4))
        assert ours == pytest.approx(full)
        for model in (NoKwargs, lambda: tiny.bert(1)):
            norms = [self.grad_norms(averaged(kind), model(), 4) for kind in (DistillationTrainer, Trainer)]
            assert norms[0] == pytest.approx(norms[1])

    @pytest.mark.parametrize("change", [lambda n: None, lambda n: n.clone(), lambda n: n * 1, int])
    def test_a_subclass_may_leave_out_or_change_the_number_of_items(self, change):
        """The gradient grows with gradient_accumulation_steps, or soft targets are divided by the number of labels."""

        class Changing(DistillationTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                return super().compute_loss(model, inputs, return_outputs, change(num_items_in_batch))

        rows = [{**row, "labels": torch.tensor(place % 3 if place % 2 else -100)} for place, row in enumerate(ROWS)]
        settings = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
        settings |= {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "alpha": 0.5}
        found = []
        for kind in (DistillationTrainer, Changing):
            trainer = made(kind, tiny.bert(2), config(**settings), train_dataset=rows)
            trainer.train()
            found.append([logged(trainer, name)[0] for name in ("loss", "grad_norm")])
        assert found[1] == pytest.approx(found[0])

    def test_ours_is_exact_all_the_same(self):
        """The rule for subclasses must not reach the loss of the class itself."""
        assert self.grad_norms(DistillationTrainer, tiny.bert(1), 4) == pytest.approx(
            self.grad_norms(DistillationTrainer, tiny.bert(1), 1)
        )


class TestLog:
    class Chatty(DistillationTrainer):
        """Logs an entry of its own in the second step."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if model.training and self.state.global_step == 1:
                self.log({"loss": 0.0})
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def test_a_log_of_ones_own_changes_no_loss(self):
        """The running loss and its parts start again, and half of them is missing in the next entry."""
        found = []
        for kind in (DistillationTrainer, self.Chatty):
            trainer = made(kind, tiny.bert(2), config(max_steps=4, logging_steps=4, alpha=0.5))
            output = trainer.train()
            last = next(entry for entry in trainer.state.log_history if entry.get("loss"))
            found.append([output.training_loss, last["loss"], last["soft_loss"], last["label_loss"]])
        assert found[1] == pytest.approx(found[0])

    def test_a_log_before_the_training_is_only_logged(self):
        """An AttributeError."""
        trainer = made(teacher=tiny.bert(2))
        trainer.log({"loss": 1.0})
        trainer.log({"loss": 1.0, "learning_rate": 1.0})
        assert logged(trainer, "loss") == [1.0, 1.0]

    @pytest.mark.slow
    def test_failed_attempts_of_another_batch_size_leave_no_trace(self):
        """The first parts of the loss hold what was added before the memory was full."""

        class Full(TrainerCallback):
            def on_substep_end(self, args, state, control, **kwargs):
                if state.train_batch_size >= 16:
                    raise RuntimeError("CUDA out of memory.")

        settings = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
        args = config(alpha=1.0, max_steps=1, logging_steps=1, auto_find_batch_size=True, **settings)
        trainer = made(args=args, callbacks=[Full()])
        trainer.train()
        assert logged(trainer, "label_loss") == pytest.approx(logged(trainer, "loss"))


class TestModelInit:
    def test_the_kind_of_problem_is_noted_in_each_new_model(self):
        """A pipeline takes softmax for a multi-label student."""
        rows = [{**row, "labels": torch.tensor([1.0, 1.0, 0.0])} for row in tiny.text_rows(8, "none")]
        arguments = {"train_dataset": rows, "eval_dataset": None}
        trainer = made(teacher=tiny.bert(2), args=config(max_steps=1), model_init=lambda: tiny.bert(1), **arguments)
        for _ in range(2):
            trainer.train()
            assert trainer.model.config.problem_type == "multi_label_classification"

    @staticmethod
    def search(space: Any, *, args: DistillationConfig, teacher: Any = None, **options: Any) -> tuple[Any, Any]:
        arguments = {"model_init": lambda: tiny.bert(1)}
        if options.pop("measured", False):
            arguments["compute_metrics"] = accuracy
        trainer = made(teacher=teacher, args=args, **arguments)
        return trainer, trainer.hyperparameter_search(
            space, backend="optuna", n_trials=options.pop("n_trials", 1), **options
        )

    @pytest.mark.slow
    def test_the_better_of_two_learning_rates_is_found(self):
        """The losses are added to the accuracy, and the worst model is the best."""
        grid = {"learning_rate": [0.01, 1e4]}
        args = config(num_train_epochs=5, eval_strategy="epoch", alpha=0.9)
        _, best = self.search(
            lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", grid["learning_rate"])},
            args=args,
            teacher=tiny.bert(2),
            measured=True,
            n_trials=2,
            direction="maximize",
            sampler=optuna.samplers.GridSampler(grid),
        )
        assert best.hyperparameters == {"learning_rate": 0.01}
        assert 0.5 < best.objective <= 1

    def test_without_metrics_the_objective_is_the_loss(self):
        """The sum of its unweighted parts is another measure."""
        args = config(max_steps=1, eval_strategy="steps", eval_steps=1, alpha=0.5)
        trainer, best = self.search(
            lambda trial: {"seed": trial.suggest_int("seed", 3, 3)}, args=args, teacher=tiny.bert(2)
        )
        assert best.objective == pytest.approx(logged(trainer, "eval_loss")[-1])

    def test_each_trial_matches_its_own_student(self):
        """Hooks on the student before, and projections that no optimizer has."""
        args = config(max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=1, hidden_weight=1.0)
        trainer, _ = self.search(
            lambda trial: {"hidden_weight": trial.suggest_categorical("hidden_weight", [0.5, 2.0])},
            args=args,
            teacher=tiny.bert(2, hidden_size=24),
            n_trials=2,
        )
        trained = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
        assert {id(weight) for weight in trainer.matching.projections.parameters()} <= trained
        soft, label, hidden, loss = (logged(trainer, n)[-1] for n in ("soft_loss", "label_loss", "hidden_loss", "loss"))
        assert loss == pytest.approx(0.9 * soft + 0.1 * label + trainer.args.hidden_weight * hidden)
        assert trainer.args.hidden_weight in (0.5, 2.0)

    @pytest.mark.parametrize(("name", "value", "low", "high"), [("alpha", 0, 0.3, 0.9), ("temperature", 4, 1.2, 1.8)])
    def test_a_whole_number_in_the_config_does_not_truncate_a_trial(self, name, value, low, high):
        """The best run's value is one that was never used."""
        args = config(max_steps=1, eval_strategy="steps", eval_steps=1, **{name: value})
        trainer, best = self.search(
            lambda trial: {name: trial.suggest_float(name, low, high)}, args=args, teacher=tiny.bert(2)
        )
        assert getattr(trainer.args, name) == best.hyperparameters[name]

    @pytest.mark.parametrize("name", ["weight_decay", "num_train_epochs", "label_smoothing_factor", "alpha_end"])
    def test_fields_that_take_fractions_hold_them(self, name):
        """The parent casts a trial's value to the type of the present one."""
        schedule = {"schedule": "linear"} if name == "alpha_end" else {}
        assert type(getattr(config(**{name: 0 if name == "label_smoothing_factor" else 1}, **schedule), name)) is float

    def test_a_search_from_labels_alone_has_its_teacher(self):
        """Trials with alpha below 1 learn from nobody, and half of the loss is gone."""
        args = config(alpha=1.0, max_steps=1, logging_steps=1, eval_strategy="steps", eval_steps=1)
        teacher = tiny.bert(2)
        trainer, _ = self.search(
            lambda trial: {"alpha": trial.suggest_float("alpha", 0.5, 0.5)}, args=args, teacher=teacher
        )
        assert trainer.teacher is teacher
        soft, label, loss = (logged(trainer, name)[-1] for name in ("soft_loss", "label_loss", "loss"))
        assert soft > 0
        assert loss == pytest.approx(0.5 * soft + 0.5 * label)

    def test_at_alpha_1_the_teacher_is_not_run(self):
        """A teacher that is there for other trials costs this one its time."""
        teacher = tiny.bert(2)
        calls: list[int] = []
        teacher.register_forward_hook(lambda *_: calls.append(1))
        trainer = made(teacher=teacher, args=config(alpha=1.0, max_steps=1), model_init=lambda: tiny.bert(1))
        trainer.train()
        assert calls == []
        assert "eval_soft_loss" not in trainer.evaluate()

    @pytest.mark.parametrize(
        ("start", "space", "message"),
        [
            ({"alpha": 1.0}, {"alpha": 0.5}, "this trial has alpha 0.5, and there is no teacher"),
            ({"alpha": 1.0}, {"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5"),
            ({"alpha": 1.0}, {"teacher_max_length": 9}, "cannot vary teacher_max_length"),
        ],
    )
    def test_trials_that_would_not_be_what_they_say(self, start, space, message):
        """A setting that is out of range, or is read when the trainer is made, has no effect and wins."""
        args = config(max_steps=1, eval_strategy="steps", eval_steps=1, **start)
        with pytest.raises(ValueError, match=message):
            self.search(lambda trial: space, args=args)


class TestStreams:
    @staticmethod
    def stream(num_rows: int, **extra: Any) -> IterableDataset:
        columns = {"input_ids": [[1, 2]] * num_rows, "attention_mask": [[1, 1]] * num_rows}
        return Dataset.from_dict({**columns, "labels": [0, 1] * (num_rows // 2), **extra}).to_iterable_dataset()

    def train(self, num_rows: int, **settings: Any) -> Any:
        fixed = {"max_steps": 6, "learning_rate": 0.0, "logging_steps": 1, "per_device_train_batch_size": 4}
        args = config(alpha=1.0, **fixed, gradient_accumulation_steps=2, **settings)
        trainer = made(args=args, train_dataset=self.stream(num_rows), eval_dataset=None)
        trainer.train()
        return trainer

    def test_a_stream_that_ends_within_a_step_has_the_gradient_of_one_step(self):
        """Three micro-batches in one step, and a gradient that is twice as large."""
        trainer = self.train(20)
        norms = logged(trainer, "grad_norm")
        assert len(norms) == 6
        assert norms == pytest.approx([norms[0]] * 6, rel=1e-4)

    def test_no_row_of_a_stream_is_left_out_or_comes_twice(self):
        """The micro-batches that wait for the next step are lost, or are in both."""
        seen: list[int] = []

        class Watching(DistillationTrainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                seen.extend(inputs["input_ids"][:, 0].tolist())
                assert float(num_items_in_batch) == 8
                return super().training_step(model, inputs, num_items_in_batch)

        columns = {"input_ids": [[place, 2] for place in range(20)], "labels": [0, 1] * 10}
        rows = Dataset.from_dict(columns).to_iterable_dataset()
        args = config(alpha=1.0, max_steps=5, per_device_train_batch_size=4, gradient_accumulation_steps=2)
        made(Watching, args=args, train_dataset=rows, eval_dataset=None).train()
        assert seen == [*range(20), *range(20)]

    def test_a_stream_shorter_than_a_step_is_refused(self):
        """A training without a step."""
        with pytest.raises(ValueError, match="gives 1 batches, and a step takes 2: lower gradient_accumulation_steps"):
            self.train(4)

    @pytest.mark.parametrize("mapped", [False, True])
    def test_soft_targets_in_a_stream_are_found(self, mapped):
        """A column that the data have is asked for."""
        rows = self.stream(8, teacher_probs=[[0.5, 0.25, 0.25]] * 8)
        rows = rows.map(lambda row: row) if mapped else rows
        args = config(max_steps=1, logging_steps=1, alpha=0.5)
        trainer = made(args=args, train_dataset=rows, eval_dataset=None)
        trainer.train()
        assert logged(trainer, "soft_loss")[0] > 0


class TestResuming:
    class Stop(TrainerCallback):
        """Stops after two steps."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    def resumed(self, **settings: Any) -> None:
        args = {"alpha": 1.0, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
        first = {"per_device_train_batch_size": 4}
        made(args=config(**args, **first), callbacks=[self.Stop()]).train()
        made(args=config(**args, **{**first, **settings})).train(resume_from_checkpoint=True)

    @pytest.mark.parametrize("settings", [{"per_device_train_batch_size": 8}, {"gradient_accumulation_steps": 2}])
    def test_other_batches_than_before_are_told(self, settings):
        """Rows are skipped, or trained on twice, without a word."""
        with pytest.warns(UserWarning, match="rows are skipped or trained on again. Resume with the former settings"):
            self.resumed(**settings)

    def test_the_same_batches_are_no_news(self):
        """A warning that always comes is read by nobody."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.resumed()


def test_new_rows_are_evaluated_by_their_labels_once_the_teacher_was_released():
    """No eval_loss, and a KeyError where the best model is chosen by it."""
    trainer = made(teacher=tiny.bert(2), args=config(alpha=0.1, max_steps=1, precompute_teacher_logits=True))
    trainer.train()
    with pytest.warns(UserWarning, match="evaluated by its labels alone"):
        found = trainer.evaluate([{**row, "labels": torch.tensor(1)} for row in tiny.text_rows(8, "none", seed=9)])
    assert found["eval_loss"] == found["eval_label_loss"]
    assert "eval_soft_loss" not in found


def test_at_alpha_0_data_without_soft_targets_are_evaluated_by_their_labels():
    """No eval_loss, and a KeyError where the best model is chosen by it, after the first epoch."""
    probs = Dataset.from_list(
        [{**{k: v.tolist() for k, v in row.items()}, "teacher_probs": [0.5, 0.25, 0.25]} for row in ROWS]
    )
    trainer = made(
        args=config(alpha=0.0, max_steps=1), train_dataset=probs, eval_dataset=probs.remove_columns("teacher_probs")
    )
    found = trainer.evaluate()
    assert found["eval_loss"] == found["eval_label_loss"] > 0


@pytest.mark.parametrize("labels", ["output_all_columns", "null lists"])
def test_labels_of_a_formatted_data_set_are_found(labels):
    """Labels that are there, refused as missing; or null beside tensors, an error of the collator."""
    rows = Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in ROWS])
    if labels == "output_all_columns":
        rows = rows.with_format("torch", columns=["input_ids", "attention_mask"], output_all_columns=True)
    else:
        values = [None if place % 2 else [0.0, 1.0, 1.0] for place in range(len(ROWS))]
        rows = rows.remove_columns("labels").add_column("labels", values).with_format("torch")
    trainer = made(
        teacher=tiny.bert(2), args=config(max_steps=1, logging_steps=1), train_dataset=rows, eval_dataset=None
    )
    trainer.train()
    assert logged(trainer, "label_loss")[0] > 0
