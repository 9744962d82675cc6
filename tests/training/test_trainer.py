"""What `DistillationTrainer` promises, on small real models of several families."""

import copy
import warnings

import pytest
import tiny
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertModel,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_distill import DistillationConfig, DistillationTrainer, label_loss, soft_target_loss
from hf_distill.data.images import ImageRows
from hf_distill.data.targets import label_mask, token_mask
from hf_distill.training.checks import check_arguments


def config(**settings):
    base = {
        "output_dir": "out",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "allow_untrained_teacher": True,
        "per_device_train_batch_size": 4,
    }
    return DistillationConfig(**{**base, **settings})


def trainer(student, teacher, rows=None, *, eval_rows=None, collator=None, **settings):
    arguments = {
        key: settings.pop(key) for key in ("compute_loss_func", "callbacks", "processing_class") if key in settings
    }
    made = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=config(**settings),
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=collator,
        **arguments,
    )
    made.remove_callback(PrinterCallback)
    return made


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch_of(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


FAMILIES = {
    "bert": (tiny.bert, tiny.text_rows),
    "distilbert": (tiny.distilbert, tiny.text_rows),
    "vit": (tiny.vit, tiny.image_rows),
    "resnet": (tiny.resnet, tiny.image_rows),
    "convnext": (tiny.convnext, tiny.image_rows),
}


@pytest.mark.parametrize("family", FAMILIES)
class TestEachFamily:
    def test_every_student_parameter_moves_and_no_teacher_parameter_does(self, family):
        """A detached loss trains only a part of the student; a teacher left unfrozen drifts."""
        build, rows = FAMILIES[family]
        student, teacher = build(0), build(1)
        before, taught = weights(student), weights(teacher)
        trainer(student, teacher, rows(8), max_steps=3, learning_rate=1e-2, alpha=0.5).train()
        still = [name for name, p in student.named_parameters() if torch.equal(p, before[name])]
        # A key's bias shifts all scores of a query alike, which no softmax notices.
        assert [name for name in still if not name.endswith(("key.bias", "k_lin.bias"))] == []
        assert same(weights(teacher), taught)

    def test_alpha_one_is_plain_trainer_and_never_runs_the_teacher(self, family):
        """An edge value of alpha that changes the formula, or pays for a teacher that has no weight."""
        build, make_rows = FAMILIES[family]
        rows = [row for row in make_rows(12) if int(row["labels"]) != -100]
        teacher = build(1)
        teacher.forward = None  # whoever calls it fails
        ours, plain = build(0), build(0)
        settings = {"per_device_train_batch_size": len(rows), "max_steps": 2, **tiny.SGD}
        distillation = trainer(ours, teacher, rows, alpha=1.0, **settings)
        reference = Trainer(
            plain,
            TrainingArguments(
                output_dir="plain",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                **settings,
            ),
            train_dataset=rows,
        )
        reference.remove_callback(PrinterCallback)
        assert distillation.train().training_loss == pytest.approx(reference.train().training_loss, rel=1e-5)
        for name, value in weights(plain).items():
            torch.testing.assert_close(weights(ours)[name], value, rtol=0, atol=1e-5)

    def test_alpha_zero_needs_no_labels(self, family):
        """Unlabelled transfer data must train, and be evaluated, without a label column."""
        build, rows = FAMILIES[family]
        student = build(0)
        before = weights(student)
        made = trainer(student, build(1), rows(8, "none"), eval_rows=rows(5, "none"), alpha=0.0, max_steps=1)
        made.train()
        assert not same(weights(student), before)
        metrics = made.evaluate()
        assert metrics["eval_loss"] == metrics["eval_soft_loss"] > 0
        assert "eval_label_loss" not in metrics


class TestTeacher:
    def test_stays_in_evaluation_mode(self):
        """Dropout in the teacher makes its soft targets noise."""
        teacher = tiny.bert(1, dropout=0.5)
        made = trainer(tiny.bert(0), teacher, tiny.text_rows(8), max_steps=2)
        teacher.train()
        made.train()
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

    def test_is_in_no_checkpoint_optimizer_or_accelerator(self):
        """A teacher in the checkpoint doubles its size; one in the accelerator breaks evaluate() before train()."""
        student, teacher = tiny.bert(0), tiny.bert(1)
        made = trainer(student, teacher, tiny.text_rows(8), eval_rows=tiny.text_rows(4), max_steps=1)
        made.evaluate()
        assert all(model is not teacher for model in made.accelerator._models)
        made.train()
        assert all(model is not teacher for model in made.accelerator._models)
        mine = {id(parameter) for parameter in student.parameters()}
        optimized = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
        assert optimized == mine
        assert set(made.model.state_dict()) == set(student.state_dict())

    def test_that_is_the_student_is_refused(self):
        """Freezing it would freeze the student, silently."""
        student = tiny.bert(0)
        with pytest.raises(ValueError, match="is the student"):
            trainer(student, student, tiny.text_rows(4))

    def test_that_shares_parameters_is_refused_and_a_copy_is_not(self):
        """A student built around the teacher's own embeddings would have them frozen."""
        student, teacher = tiny.bert(0), tiny.bert(1)
        student.bert.embeddings = teacher.bert.embeddings
        with pytest.raises(ValueError, match=r"shares bert\.embeddings.*deepcopy"):
            trainer(student, teacher, tiny.text_rows(4))
        trainer(student, copy.deepcopy(student), tiny.text_rows(4))

    def test_missing_is_refused_unless_alpha_is_one(self):
        """A weight below one without a teacher would train on less than the whole loss."""
        with pytest.raises(ValueError, match=r"there is no teacher: pass teacher="):
            trainer(tiny.bert(0), None, tiny.text_rows(4))
        trainer(tiny.bert(0), None, tiny.text_rows(4), alpha=1.0)

    def test_of_the_wrong_type_is_refused(self):
        """Trainer's second positional argument is its args: passed here, it must not end as a teacher."""
        with pytest.raises(ValueError, match=r"teacher must be a model, a Hub id, .* got DistillationConfig"):
            DistillationTrainer(tiny.bert(0), config())

    def test_processes_that_would_not_work_together_are_refused(self, monkeypatch):
        """Without use_cpu on a machine without a GPU, each of two processes trains a whole model in one folder."""
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ValueError, match=r"2 processes were launched, .* set use_cpu to true"):
            check_arguments(DistillationConfig("out"))

    def test_plain_training_arguments_are_refused(self):
        """They have no alpha and temperature."""
        with pytest.raises(ValueError, match="must be a DistillationConfig, got TrainingArguments"):
            DistillationTrainer(tiny.bert(0), tiny.bert(1), args=TrainingArguments("out"))

    def test_is_loaded_from_a_folder(self, tmp_path):
        """A teacher by name is the common case."""
        saved = tiny.bert(1)
        saved.save_pretrained(tmp_path / "teacher")
        made = trainer(tiny.bert(0), str(tmp_path / "teacher"), tiny.text_rows(8), max_steps=1)
        assert same(weights(made.teacher), weights(saved))
        assert made.train().global_step == 1

    def test_with_a_new_head_is_refused(self, tmp_path):
        """Its random head would be distilled as if it knew something."""
        BertModel(tiny.bert(1).config).save_pretrained(tmp_path / "base")
        with pytest.raises(ValueError, match=r"lacks classifier\.bias, classifier\.weight.*drawn at random"):
            trainer(tiny.bert(0), str(tmp_path / "base"), tiny.text_rows(4), allow_untrained_teacher=False)

    def test_at_chance_level_is_refused_before_the_first_step(self):
        """A teacher whose labels are in another order costs a whole training before anyone notices."""
        student = tiny.bert(0)
        before = weights(student)
        rows = [row for row in tiny.text_rows(90) if int(row["labels"]) != -100]
        made = trainer(student, tiny.bert(1), rows, eval_rows=rows, max_steps=1, allow_untrained_teacher=False)
        with pytest.raises(ValueError, match=r"no better than chance \(accuracy .* on 60 labels"):
            made.train()
        assert same(weights(student), before)

    def test_that_sees_one_class_alone_is_not_refused(self):
        """The first rows of sorted data: a good teacher called untrained for three errors."""
        rows = [{**row, "labels": torch.tensor(0)} for row in tiny.text_rows(60, "none")]
        made = trainer(tiny.bert(0), tiny.bert(1), rows, eval_rows=rows, max_steps=1, allow_untrained_teacher=False)
        with pytest.warns(
            UserWarning, match="how good the teacher is cannot be told, the evaluation labels do not diff"
        ):
            made.train()
        assert made.teacher_quality.ranking is None
        made = trainer(tiny.bert(0), tiny.bert(1), rows, eval_rows=rows, max_steps=1)
        made.train()  # all warnings are errors here

    def test_that_is_good_on_one_evaluation_set_of_two_is_accepted(self):
        """A second set of rows of another kind that stops the training."""
        teacher = tiny.bert(1, initializer_range=0.5).eval()
        rows = tiny.text_rows(120, "none")
        with torch.no_grad():
            answers = teacher(**batch_of(rows)).logits.argmax(-1)
        known = [{**row, "labels": answer} for row, answer in zip(rows, answers, strict=True)]
        others = [{**row, "labels": torch.tensor(i % 3)} for i, row in enumerate(rows)]
        settings = {"max_steps": 1, "allow_untrained_teacher": False}
        made = trainer(tiny.bert(0), teacher, known, eval_rows={"known": known, "others": others}, **settings)
        with pytest.warns(UserWarning, match=r"the teacher \(evaluation set others\) .* chance"):
            made.train()
        made = trainer(tiny.bert(0), teacher, known, eval_rows={"others": others}, **settings)
        with pytest.raises(
            ValueError, match=r"the teacher \(evaluation set others\) predicts .* no better than chance"
        ):
            made.train()

    def test_that_knows_its_labels_is_accepted(self):
        """The check must not refuse a good teacher."""
        teacher = tiny.bert(1, initializer_range=0.5)
        rows = tiny.text_rows(60, "none")
        teacher.eval()
        with torch.no_grad():
            answers = teacher(**batch_of(rows)).logits.argmax(-1)
        assert answers.unique().numel() > 1
        rows = [{**row, "labels": answer} for row, answer in zip(rows, answers, strict=True)]
        made = trainer(tiny.bert(0), teacher, rows, eval_rows=rows, max_steps=1, allow_untrained_teacher=False)
        made.train()
        assert made.teacher_quality.value == 1.0

    def test_with_nan_logits_is_refused(self):
        """The student would become NaN at the first step."""
        teacher = tiny.bert(1)
        torch.nn.init.constant_(teacher.classifier.bias, float("nan"))
        student = tiny.bert(0)
        before = weights(student)
        with pytest.raises(ValueError, match="teacher's logits are NaN"):
            trainer(student, teacher, tiny.text_rows(8), max_steps=1).train()
        assert same(weights(student), before)

    def test_labels_are_aligned_by_name(self):
        """The same teacher with its labels in another order must give the same loss."""
        plain, turned = tiny.bert(1), tiny.bert(1)
        order = [2, 0, 1]
        turned.classifier.weight.data = plain.classifier.weight.data[order]
        turned.classifier.bias.data = plain.classifier.bias.data[order]
        turned.config.id2label = {i: plain.config.id2label[j].upper() for i, j in enumerate(order)}
        rows = tiny.text_rows(8)
        losses = [
            trainer(tiny.bert(0), teacher, rows, max_steps=1, per_device_train_batch_size=8).train().training_loss
            for teacher in (plain, turned)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_with_other_labels_is_refused_with_both_lists(self):
        """Other labels of the same number would be matched by position."""
        other = tiny.bert(1, id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2})
        with pytest.raises(ValueError, match=r"'x', 'y', 'z'.*'red', 'green', 'blue'.*teacher_label_map"):
            trainer(tiny.bert(0), other, tiny.text_rows(4))
        mapped = {"red": "y", "green": "x", "blue": "z"}
        trainer(tiny.bert(0), other, tiny.text_rows(4), teacher_label_map=mapped)

    def test_with_generic_labels_passes_with_a_warning(self):
        """Many models on the Hub never named their labels."""
        generic = tiny.bert(1, id2label={i: f"LABEL_{i}" for i in range(3)}, label2id=None)
        with pytest.warns(UserWarning, match="generic names"):
            trainer(tiny.bert(0), generic, tiny.text_rows(4))

    def test_of_another_problem_type_is_refused(self):
        """A multi-label teacher's logits are no softmax."""
        with pytest.raises(ValueError, match="the student's single_label_classification, the teacher's multi_label"):
            trainer(
                tiny.bert(0, problem_type="single_label_classification"),
                tiny.bert(1, problem_type="multi_label_classification"),
                tiny.text_rows(4),
            )

    def test_runs_under_the_runs_autocast(self):
        """A teacher outside autocast runs at half the speed, one in it must not change the weights' type."""
        teacher = tiny.bert(1)
        seen = []
        teacher.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.logits.dtype))
        trainer(tiny.bert(0), teacher, tiny.text_rows(8), max_steps=1, bf16=True).train()
        assert seen == [torch.bfloat16]
        assert teacher.dtype == torch.float32

    def test_has_its_own_dtype(self):
        """teacher_dtype must reach the weights, and pixels must follow them."""
        teacher = tiny.vit(1)
        seen = []
        teacher.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.logits.dtype))
        trainer(tiny.vit(0), teacher, tiny.image_rows(8), max_steps=1, teacher_dtype="bfloat16").train()
        assert seen == [torch.bfloat16]
        assert teacher.dtype == torch.bfloat16

    @pytest.mark.parametrize("form", ["dataset", "list"])
    def test_gets_the_columns_that_only_it_needs(self, form):
        """A DistilBERT student takes no token_type_ids; removed as unused, its BERT teacher sees one segment."""
        rows = [{**row, "token_type_ids": torch.tensor([0, 0, 0, 1, 1, 1])} for row in tiny.text_rows(8)]
        if form == "dataset":
            rows = Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows])
        teacher = tiny.bert(1)
        seen = []
        teacher.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["token_type_ids"].sum().item()), with_kwargs=True
        )
        trainer(tiny.distilbert(0), teacher, rows, max_steps=1).train()
        assert seen == [12]


def gpt2(seed, **settings):
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tiny.VOCABULARY), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    tokens = {"bos_token_id": 3, "eos_token_id": 3}
    return GPT2ForSequenceClassification(GPT2Config(**{**tiny.labels(), **shape, **tokens, **settings}))


def llama(seed, **settings):
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tiny.VOCABULARY), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(**{**tiny.labels(), **shape, **heads, **settings}))


class TestPaddingToken:
    """A teacher that finds the end of a text by it."""

    @pytest.mark.parametrize("build", [gpt2, llama])
    @pytest.mark.parametrize("loaded", [False, True], ids=["model", "folder"])
    def test_of_a_teacher_without_one_is_that_of_the_batches(self, build, loaded):
        """An error about batch sizes that does not say whose it is: `Trainer` sees to the student alone."""
        teacher = build(1, initializer_range=0.5)
        assert teacher.config.pad_token_id is None
        if loaded:
            teacher.save_pretrained("teacher")
        rows = tiny.text_rows(8)
        with torch.no_grad():  # one by one, without padding
            alone = [teacher.eval()(input_ids=row["input_ids"][row["attention_mask"].bool()][None]) for row in rows]
        made = trainer(
            tiny.bert(0), "teacher" if loaded else teacher, rows, processing_class=tiny.tokenizer(), max_steps=1
        )
        made.train()
        assert made.teacher.config.pad_token_id == tiny.tokenizer().pad_token_id
        found = made.predict_with_teacher(rows)[0]["the teacher"]
        torch.testing.assert_close(torch.from_numpy(found), torch.cat([one.logits for one in alone]))

    def test_that_is_set_stays_as_it_is(self):
        """A model of the user's, changed behind their back."""
        teacher = gpt2(1, pad_token_id=4)
        trainer(tiny.bert(0), teacher, tiny.text_rows(4), processing_class=tiny.tokenizer())
        assert teacher.config.pad_token_id == 4

    @pytest.mark.parametrize("count", [1, 2])
    def test_that_nobody_knows_is_an_error_that_names_the_teacher(self, count):
        """The user looks for the fault in the student."""
        teachers = gpt2(1) if count == 1 else [tiny.bert(2), gpt2(1)]
        made = trainer(tiny.bert(0), teachers, tiny.text_rows(8), max_steps=1)
        with pytest.raises(ValueError, match=r"the teacher \(GPT2ForSeq.*teacher\.config\.pad_token_id to the one"):
            made.train()


class TestLoss:
    @pytest.mark.parametrize("kind", ["single", "multi", "regression"])
    @pytest.mark.parametrize("batch_size", [2, 3, 7])
    def test_evaluation_loss_is_that_of_the_whole_set(self, kind, batch_size):
        """A mean of batch means is another number where labels are missing, and changes with the batch size."""
        types = {
            "single": "single_label_classification",
            "multi": "multi_label_classification",
            "regression": "regression",
        }
        student, teacher = (tiny.bert(seed, problem_type=types[kind]) for seed in (0, 1))
        rows = tiny.text_rows(7, kind)
        made = trainer(
            student, teacher, eval_rows=rows, alpha=0.3, temperature=3.0, per_device_eval_batch_size=batch_size
        )
        found = made.evaluate()["eval_loss"]
        batch = batch_of(rows)
        labels = batch.pop("labels")
        with torch.no_grad():
            logits, targets = student.eval()(**batch).logits, teacher(**batch).logits
        soft = soft_target_loss(logits, targets, 3.0, types[kind]).mean()
        hard = label_loss(logits, labels, types[kind]).sum() / label_mask(labels, types[kind]).sum()
        assert found == pytest.approx(float(0.3 * hard + 0.7 * soft), rel=1e-5)

    def test_evaluations_in_a_training_do_not_run_the_teacher_again(self):
        """A teacher that is run over all of the evaluation set in each epoch, to say what it has said before."""
        rows, eval_rows = tiny.text_rows(8), tiny.text_rows(7)
        asked, found = [], {}
        for kind in ("one", "several"):
            teachers = [tiny.bert(1)] if kind == "one" else [tiny.bert(1), tiny.bert(2)]
            for teacher in teachers:
                teacher.register_forward_pre_hook(
                    lambda module, args, kwargs: asked.append(len(kwargs["input_ids"])), with_kwargs=True
                )
            made = trainer(
                tiny.bert(0),
                teachers if len(teachers) > 1 else teachers[0],
                rows,
                eval_rows=eval_rows,
                eval_strategy="epoch",
                num_train_epochs=3,
                per_device_eval_batch_size=4,
            )
            made.train()
            assert sum(asked) == len(teachers) * (len(eval_rows) + 3 * len(rows)), kind
            found = made.evaluate()
            assert sum(asked) == len(teachers) * (len(eval_rows) + 3 * len(rows)), kind
            fresh = trainer(made.model, teachers if len(teachers) > 1 else teachers[0], eval_rows=eval_rows)
            assert fresh.evaluate()["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-5), kind
            asked.clear()
            made.evaluate(tiny.text_rows(7, seed=5))
            assert sum(asked) == len(teachers) * 7
            asked.clear()

    def test_a_teacher_without_weight_is_not_run_in_evaluations(self):
        """Forward passes of a large model, multiplied by zero; a soft loss of zero that looks like agreement."""
        teacher, rows = tiny.bert(1), [row for row in tiny.text_rows(12) if int(row["labels"]) != -100]
        made = trainer(tiny.bert(0), teacher, rows, alpha=0.1, alpha_end=1.0, schedule="linear", eval_rows=rows)
        teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher is run"))
        found = made.evaluate()
        assert found["eval_loss"] == found["eval_label_loss"]
        assert "eval_soft_loss" not in found
        unlabelled = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
        with pytest.raises(pytest.fail.Exception):
            made.evaluate(unlabelled)

    def test_evaluation_loss_of_tokens_is_that_of_the_whole_set(self):
        """Rows have different numbers of tokens, and padding is none."""
        student, teacher = tiny.bert_for_tokens(0), tiny.bert_for_tokens(1)
        rows = tiny.text_rows(7, "token")
        rows[3]["labels"] = torch.full((6,), -100)
        found = trainer(student, teacher, eval_rows=rows, alpha=0.3, per_device_eval_batch_size=2).evaluate()
        batch = batch_of(rows)
        labels = batch.pop("labels")
        with torch.no_grad():
            logits, targets = student.eval()(**batch).logits, teacher(**batch).logits
        mask = token_mask(batch["attention_mask"], labels)
        assert mask[3].all()
        soft = soft_target_loss(logits, targets, 4.0, "single_label_classification")[mask].mean()
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert found["eval_loss"] == pytest.approx(float(0.3 * hard + 0.7 * soft), rel=1e-5)

    def test_parts_are_logged_beside_the_loss(self):
        """Parts that do not add up to the loss mislead whoever tunes alpha by them."""
        made = trainer(
            tiny.bert(0),
            tiny.bert(1),
            [row for row in tiny.text_rows(24) if int(row["labels"]) != -100],
            alpha=0.3,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            logging_steps=2,
            max_steps=4,
        )
        made.train()
        logged = [entry for entry in made.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in logged] == [2, 4]
        for entry in logged:
            assert entry["loss"] == pytest.approx(0.3 * entry["label_loss"] + 0.7 * entry["soft_loss"], rel=1e-5)

    def test_reads_nothing_back_from_the_device(self):
        """Each value read in a step makes a GPU wait."""

        class CountReads(TorchDispatchMode):
            reads = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                self.reads += "_local_scalar_dense" in str(func)
                return func(*args, **(kwargs or {}))

        made = trainer(tiny.bert(0), tiny.bert(1), tiny.text_rows(8), alpha=0.5)
        batch = batch_of(tiny.text_rows(4))
        made.model.train()
        made.compute_loss(made.model, batch)  # the first batch is checked for NaN
        with CountReads() as of_the_models:  # their attention masks are looked at
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            made.model(**inputs)
            made.teacher(**inputs)
        with CountReads() as counter:
            counts = made._get_num_items_in_batch([batch], torch.device("cpu"))
            made.compute_loss(made.model, batch, num_items_in_batch=counts)
        assert counter.reads == of_the_models.reads == 2

    def test_labels_of_plain_numbers_out_of_range_are_refused(self):
        """On a GPU they end in an assertion that kills the process."""
        rows = Dataset.from_list([{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": n} for n in (0, 1, 3)])
        with pytest.raises(ValueError, match="labels run from 0 to 3, the student has 3 classes"):
            trainer(tiny.bert(0), tiny.bert(1), rows)

    def test_missing_labels_are_an_error_for_alpha_one(self):
        """Without labels there is nothing left to learn from."""
        with pytest.raises(ValueError, match=r"alpha is 1.*no labels"):
            trainer(tiny.bert(0), None, tiny.text_rows(4, "none"), alpha=1.0, max_steps=1).train()

    def test_problem_type_is_written_into_the_students_config(self):
        """Pipelines choose softmax or sigmoid by it, and the student itself never sees a label."""
        student = tiny.bert(0)
        trainer(student, tiny.bert(1), tiny.text_rows(4, "multi"), max_steps=1).train()
        assert student.config.problem_type == "multi_label_classification"


class TestOptionsOfTrainer:
    def test_label_smoothing_is_honoured(self):
        """An overridden compute_loss loses it silently."""
        rows = [row for row in tiny.text_rows(12) if int(row["labels"]) != -100]
        student = tiny.bert(0, initializer_range=0.5)
        made = trainer(student, None, eval_rows=rows, alpha=1.0, label_smoothing_factor=0.2)
        batch = batch_of(rows)
        labels = batch.pop("labels")
        with torch.no_grad():
            expected = F.cross_entropy(student.eval()(**batch).logits, labels, label_smoothing=0.2)
        assert made.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)

    def test_compute_loss_func_is_honoured_whatever_its_mean(self):
        """It takes the place of the label loss, exactly normalised, also if it takes a mean of its own."""

        def by_count(outputs, labels, num_items_in_batch=None):
            total = F.cross_entropy(outputs.logits, labels, reduction="sum", ignore_index=-100)
            return total / num_items_in_batch

        def by_mean(outputs, labels, num_items_in_batch=None):
            return F.cross_entropy(outputs.logits, labels, ignore_index=-100)

        rows = tiny.text_rows(7)
        settings = {"eval_rows": rows, "alpha": 0.5, "per_device_eval_batch_size": 3}
        losses = [
            trainer(tiny.bert(0), tiny.bert(1), compute_loss_func=function, **settings).evaluate()["eval_loss"]
            for function in (None, by_count, by_mean)
        ]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

    def test_settings_of_the_label_loss_that_would_be_lost_are_refused(self):
        """A setting that another one silently switches off."""
        models = {"student": tiny.bert(0), "teacher": tiny.bert(1)}
        with pytest.raises(ValueError, match="alpha is 0"):
            trainer(**models, alpha=0.0, label_smoothing_factor=0.1)
        with pytest.raises(ValueError, match="alpha is 0"):
            trainer(**models, alpha=0.0, compute_loss_func=lambda *a, **k: None)
        with pytest.raises(ValueError, match="both define the label loss"):
            trainer(**models, label_smoothing_factor=0.1, compute_loss_func=lambda *a, **k: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Trainer's own remark on the same
            multi = [tiny.bert(seed, problem_type="multi_label_classification") for seed in (0, 1)]
            with pytest.raises(ValueError, match="multi_label_classification has none"):
                trainer(*multi, label_smoothing_factor=0.1)

    def test_predictions_come_in_the_order_of_the_data(self):
        """Grouped by length, Trainer.predict returns the rows in another order, with no error anywhere."""
        rows = []
        for place in range(12):
            length = 1 + (place * 5) % 7
            rows.append({"input_ids": [5 + place] * length, "attention_mask": [1] * length, "labels": place % 3})
        dataset = Dataset.from_list(rows)
        student = tiny.bert(0, initializer_range=0.5)
        made = trainer(
            student,
            None,
            alpha=1.0,
            train_sampling_strategy="group_by_length",
            per_device_eval_batch_size=4,
            processing_class=tiny.tokenizer(),
        )
        found = made.predict(dataset)
        assert found.label_ids.tolist() == dataset["labels"][:]
        with torch.no_grad():
            alone = [student.eval()(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
        torch.testing.assert_close(torch.tensor(found.predictions), torch.stack(alone), rtol=1e-4, atol=1e-5)

    def test_tokens_are_trained_with_padding_of_the_collator(self):
        """Token classification with rows of different lengths, as a tokenizer makes them."""
        random = torch.Generator().manual_seed(0)
        rows = []
        for length in (3, 5, 4, 6):
            ids = torch.randint(5, 20, (length,), generator=random).tolist()
            rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": [0, -100, 2, 1, 1, 0][:length]})
        student = tiny.bert_for_tokens(0)
        before = weights(student)
        tokenizer = tiny.tokenizer()
        made = trainer(
            student,
            tiny.bert_for_tokens(1),
            Dataset.from_list(rows),
            eval_rows=Dataset.from_list(rows),
            collator=DataCollatorForTokenClassification(tokenizer),
            processing_class=tokenizer,
            max_steps=1,
        )
        made.train()
        assert not same(weights(student), before)
        assert made.predict(Dataset.from_list(rows)).predictions.shape == (4, 6, 3)

    def test_a_peft_student_trains_its_adapter_only(self, tmp_path):
        """PEFT hides the student's class and signature behind a wrapper."""
        base = tiny.distilbert(0)
        student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_lin", "v_lin"]))
        before = weights(student)
        rows = [{**row, "token_type_ids": torch.zeros(6, dtype=torch.long)} for row in tiny.text_rows(8)]
        made = trainer(student, tiny.bert(1), rows, eval_rows=rows, max_steps=2, learning_rate=1e-2)
        made.train()
        moved = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
        assert moved
        assert all("lora_" in name or "modules_to_save" in name for name in moved)
        assert made.evaluate()["eval_loss"] > 0
        made.save_model(str(tmp_path / "adapter"))
        assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()

    @pytest.mark.parametrize(("task", "said"), [(None, "no task_type"), ("FEATURE_EXTRACTION", "FEATURE_EXTRACTION")])
    @pytest.mark.parametrize(
        ("build", "modules"), [(tiny.distilbert, ["q_lin"]), (tiny.bert, ["query"]), (tiny.vit, ["query", "q_proj"])]
    )
    def test_a_peft_student_whose_head_is_frozen_is_warned_of(self, build, modules, task, said):
        """Its head stays as random as it was drawn, in training and in the saved adapter."""
        student = get_peft_model(build(0), LoraConfig(task_type=task, r=2, target_modules=modules))
        rows = tiny.image_rows(4) if build is tiny.vit else tiny.text_rows(4)
        teacher = tiny.vit(1) if build is tiny.vit else tiny.bert(1)
        with pytest.warns(UserWarning, match=rf"{said}, so its .*head \(classifier.*neither trained nor saved"):
            trainer(student, teacher, rows)

    @pytest.mark.parametrize(
        "settings",
        [
            {"task_type": "SEQ_CLS", "target_modules": ["query"]},
            {"task_type": "FEATURE_EXTRACTION", "target_modules": ["query"], "modules_to_save": ["classifier"]},
            {"target_modules": ["query"], "modules_to_save": ["classifier"]},
            {"target_modules": ["query", "classifier"]},  # an adapter of the head
        ],
        ids=["task", "saved whatever the task", "saved", "adapted"],
    )
    def test_a_peft_student_whose_head_is_trained_is_not_warned_of(self, settings):
        """A warning of the missing task, where the head is trained all the same."""
        student = get_peft_model(tiny.bert(0), LoraConfig(r=2, **settings))
        head = {name: value.clone() for name, value in student.named_parameters() if "classifier" in name}
        trainer(student, tiny.bert(1), tiny.text_rows(8), max_steps=1, learning_rate=1e-2).train()
        moved = [
            name for name, value in student.named_parameters() if name in head and not torch.equal(value, head[name])
        ]
        assert moved

    def test_model_init_works(self):
        """Hyperparameter search builds the student anew by it."""
        made = DistillationTrainer(
            teacher=tiny.bert(1),
            model_init=lambda: tiny.bert(0),
            args=config(max_steps=1),
            train_dataset=tiny.text_rows(4),
        )
        made.remove_callback(PrinterCallback)
        assert made.train().global_step == 1


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True
        return control


def test_the_best_checkpoint_of_a_vit_is_loaded_at_the_end():
    """Its weights are saved under other names than the model's, and Trainer would load none of them."""
    student = tiny.vit(0)
    rows = [row for row in tiny.image_rows(12) if int(row["labels"]) != -100]
    made = trainer(
        student,
        None,
        rows,
        eval_rows=rows,
        alpha=1.0,
        learning_rate=0.1,  # so high that the loss rises
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    made.train()
    losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1]
    assert made.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_resumed_run_ends_with_the_same_weights(strategy):
    """Stopped in the middle of the second epoch: order of rows, dropout and optimizer must all come back."""

    def dataset():
        rows = []
        for place in range(20):
            length = 2 + (place * 7) % 5
            rows.append({"input_ids": [5 + place % 15] * length, "attention_mask": [1] * length, "labels": place % 3})
        return Dataset.from_list(rows)

    def run(folder, stop=None, resume=None):
        student = tiny.bert(0, dropout=0.1)
        made = trainer(
            student,
            tiny.bert(1),
            dataset(),
            eval_rows=dataset(),
            output_dir=folder,
            num_train_epochs=3,
            gradient_accumulation_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            train_sampling_strategy=strategy,
            save_strategy="epoch",
            processing_class=tiny.tokenizer(),
            callbacks=[_StopAt(stop)] if stop else None,
        )
        made.train(resume_from_checkpoint=resume)
        return weights(student)

    whole = run("whole")
    run("part", stop=8)
    assert same(run("part", resume="part/checkpoint-8"), whole)


def test_a_resumed_run_sees_the_same_augmented_images(tmp_path):
    """Augmentation from the global random state is lost when a run is stopped between two batches."""
    import numpy as np
    from datasets import Features, Image, Value
    from PIL import Image as PILImage
    from transformers import ViTImageProcessorPil

    random = np.random.default_rng(0)
    images = [PILImage.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(12)]
    rows = Dataset.from_dict(
        {"image": images, "labels": [i % 3 for i in range(12)]},
        features=Features({"image": Image(), "labels": Value("int64")}),
    )

    def run(folder, stop=None, resume=None):
        student = tiny.vit(0)
        made = trainer(
            student,
            tiny.vit(1),
            ImageRows(rows, "image", ViTImageProcessorPil(do_resize=False), crop_padding=2, horizontal_flip=True),
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=3,
            learning_rate=1e-3,
            save_strategy="epoch",
            callbacks=[_StopAt(stop)] if stop else None,
        )
        made.train(resume_from_checkpoint=resume)
        return weights(student)

    whole = run("whole")
    run("part", stop=6)
    assert same(run("part", resume="part/checkpoint-6"), whole)


class _Open(torch.nn.Module):
    """A model behind a forward that names no input, as wrappers of many libraries have it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)


class TestForwardsOfOtherKinds:
    @pytest.mark.parametrize("wrapped", ["teacher", "student", "both"])
    def test_one_that_names_no_input_gets_the_whole_batch(self, wrapped):
        """Inputs are chosen by name: a wrapper got none, or took all of them from the student."""
        rows = tiny.text_rows(8)

        def loss(student, teacher):
            made = trainer(student, teacher, rows, eval_rows=rows, max_steps=1, remove_unused_columns=False)
            made.train()
            return made.evaluate()["eval_loss"]

        student, teacher = tiny.bert(0), tiny.bert(1)
        if wrapped in ("student", "both"):
            student = _Open(student)
        if wrapped in ("teacher", "both"):
            teacher = _Open(teacher)
        assert loss(student, teacher) == pytest.approx(loss(tiny.bert(0), tiny.bert(1)), rel=1e-6)

    def test_compiled_teacher_gets_its_inputs(self):
        """torch.compile hides the signature of the model's forward."""
        teacher = torch.compile(tiny.bert(1), backend="eager")
        rows = tiny.text_rows(8)
        losses = [
            trainer(tiny.bert(0), one, rows, max_steps=1).train().training_loss for one in (teacher, tiny.bert(1))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    def test_that_returns_a_bare_tensor_works(self):
        """Models from outside Transformers return their logits and nothing around them."""

        class Bare(torch.nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask):
                return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

        rows = tiny.text_rows(8)
        made = trainer(Bare(tiny.bert(0)), Bare(tiny.bert(1)), rows, eval_rows=rows, max_steps=1)
        made.train()
        assert made.predict(rows).predictions.shape == (8, 3)

    def test_without_a_head_is_refused(self):
        """An encoder in the place of a classifier ended in a KeyError."""
        rows = tiny.text_rows(4)
        headless = BertModel(tiny.bert(0).config)
        for student, teacher in ((headless, tiny.bert(1)), (tiny.bert(0), headless)):
            with pytest.raises(ValueError, match=r"has last_hidden_state.*classification head"):
                trainer(student, teacher, rows, max_steps=1).train()


@pytest.mark.parametrize("kind", ["single", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("setting", [{}, {"output_hidden_states": True}, {"return_dict": False}])
def test_predictions_are_the_logits_and_nothing_else(setting, alpha, kind):
    """Hidden states beside the logits, or the batches' losses in their place, went into compute_metrics."""
    student = tiny.bert(0, **setting)
    rows = tiny.text_rows(10, kind)
    found = trainer(student, tiny.bert(1), alpha=alpha, per_device_eval_batch_size=4).predict(rows)
    inputs = {name: value for name, value in batch_of(rows).items() if name != "labels"}
    with torch.no_grad():
        expected = student.eval()(**inputs, return_dict=True).logits
    torch.testing.assert_close(torch.from_numpy(found.predictions), expected)
    assert (found.label_ids is None) == (kind == "none")


def test_labels_of_another_shape_name_the_problem_type_they_were_taken_for():
    """Multi-label data with whole numbers: the shapes in the message were equal, and the cause not in it."""
    rows = [{**row, "labels": torch.tensor([1, 0, 1])} for row in tiny.text_rows(4, "none")]
    with pytest.raises(ValueError, match=r"in single_label_classification: expected one .*problem_type in the student"):
        trainer(tiny.bert(0), tiny.bert(1), rows, max_steps=1, alpha=0.5).train()
