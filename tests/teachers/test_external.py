"""Teachers that are no models."""

import math

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from sklearn.ensemble import GradientBoostingClassifier
from transformers import PrinterCallback

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.teachers.external import TeacherColumn, TeacherFunction

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]])


def trainer(teacher, rows, eval_rows=None, student=None, **settings):
    base = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "allow_untrained_teacher": True}
    made = DistillationTrainer(
        student or tiny.bert(0),
        teacher,
        DistillationConfig("out", **{**base, **settings}),
        train_dataset=rows,
        eval_dataset=eval_rows,
    )
    made.remove_callback(PrinterCallback)
    return made


def plain(rows, **columns):
    """Return rows as a data set of lists, with further columns."""
    made = [{name: value.tolist() for name, value in row.items()} for row in rows]
    return Dataset.from_list([{**row, **{n: c[i] for n, c in columns.items()}} for i, row in enumerate(made)])


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def combined(column, values, problem_type="single_label_classification"):
    teacher = TeacherColumn(column, values.shape[-1], CPU)
    return teacher.combine(teacher({column: values}), 1.0, problem_type)


class TestColumn:
    def test_logits_probabilities_and_the_model_itself_teach_the_same(self):
        """A column in another order than the rows, or probabilities taken for logits."""
        teacher, rows = tiny.bert(1, initializer_range=0.3), tiny.text_rows(12)
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = teacher.eval()(**batch).logits.double()
        taught = []
        for given, columns in (
            (teacher, {}),
            (None, {"teacher_logits": logits.tolist()}),
            (None, {"teacher_probs": logits.softmax(-1).tolist()}),
        ):
            made = trainer(given, plain(rows, **columns), max_steps=4, alpha=0.2, temperature=3.0, **tiny.SGD)
            made.train()
            taught.append(weights(made.model))
        for other in taught[1:]:
            for name, value in taught[0].items():
                torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5)

    def test_a_row_without_soft_targets_learns_from_its_label_alone(self):
        """A missing row that counts as a uniform teacher, or makes the loss NaN."""
        rows = tiny.text_rows(4)
        some = plain(rows, teacher_logits=[[1.0, 2.0, 3.0], None, [0.0, 0.0, 4.0], None])
        those = plain([rows[0], rows[2]], teacher_logits=[[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
        settings = {"alpha": 0.0, "per_device_eval_batch_size": 4}
        assert trainer(None, some, some, **settings).evaluate()["eval_loss"] == pytest.approx(
            trainer(None, those, those, **settings).evaluate()["eval_loss"], rel=1e-5
        )
        taught = trainer(None, some, alpha=0.5, max_steps=2)
        taught.train()
        assert all(bool(value.isfinite().all()) for value in taught.model.state_dict().values())

    def test_a_gradient_boosting_teaches_a_transformer(self):
        """The use that it is for: soft targets from a model of scikit-learn."""
        rows = [row for row in tiny.text_rows(60) if int(row["labels"]) >= 0]
        counts = np.stack([np.bincount(row["input_ids"].numpy(), minlength=40) for row in rows])
        labels = [int(row["labels"]) for row in rows]
        boosting = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(counts, labels)
        probabilities = boosting.predict_proba(counts)
        assert (probabilities.argmax(-1) == labels).mean() > 0.8
        data = plain(rows, teacher_probs=probabilities.tolist())
        settings = {"alpha": 0.0, "temperature": 1.0, "num_train_epochs": 30, "learning_rate": 1e-2}
        made = trainer(None, data, data, student=tiny.bert(0, initializer_range=0.2), **settings)
        before = made.evaluate()["eval_soft_loss"]
        made.train()
        assert made.evaluate()["eval_soft_loss"] < before / 3
        predictions = made.predict(data).predictions.argmax(-1)
        assert (predictions == probabilities.argmax(-1)).mean() > 0.9

    def test_tokens_have_soft_targets_of_their_own(self):
        """Rows of different lengths, and padding that counts."""
        rows = [
            {"input_ids": [2, 5, 6, 3], "labels": [-100, 1, 2, -100]},
            {"input_ids": [2, 5, 3], "labels": [-100, 0, -100]},
        ]
        teacher = tiny.bert_for_tokens(1, initializer_range=0.3).eval()
        for row in rows:
            with torch.no_grad():
                row["teacher_logits"] = teacher(torch.tensor([row["input_ids"]])).logits[0].tolist()
        from transformers import DataCollatorForTokenClassification

        losses = []
        for given in (None, teacher):
            data = Dataset.from_list(
                rows if given is None else [{k: r[k] for k in ("input_ids", "labels")} for r in rows]
            )
            made = DistillationTrainer(
                tiny.bert_for_tokens(0),
                given,
                DistillationConfig("out", use_cpu=True, disable_tqdm=True, alpha=0.5, allow_untrained_teacher=True),
                eval_dataset=data,
                train_dataset=data,
                data_collator=DataCollatorForTokenClassification(tiny.tokenizer()),
            )
            made.remove_callback(PrinterCallback)
            losses.append(made.evaluate()["eval_loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_probabilities_become_their_logits(self):
        """A temperature that acts on something other than the logits of the probabilities."""
        probabilities = LOGITS.softmax(-1)
        torch.testing.assert_close((combined("teacher_probs", probabilities) / 3).softmax(-1), (LOGITS / 3).softmax(-1))
        certain = combined("teacher_probs", torch.tensor([[1.0, 0.0, 0.0]]))
        assert certain.softmax(-1).tolist() == [[1.0, 0.0, 0.0]]
        several = combined("teacher_probs", torch.tensor([[1.0, 0.0, 0.3]]), "multi_label_classification")
        torch.testing.assert_close(several.sigmoid(), torch.tensor([[1.0, 0.0, 0.3]]))
        assert bool(several.isfinite().all())

    @pytest.mark.parametrize(
        ("column", "values", "problem_type", "message"),
        [
            (
                "teacher_probs",
                [[2.0, -1.0]],
                "single_label_classification",
                "must be from 0 to 1, got 2.*teacher_logits",
            ),
            ("teacher_probs", [[0.5, 0.4]], "single_label_classification", "must sum to 1, got a sum of 0.9"),
            ("teacher_probs", [[0.5, 0.5]], "regression", "regression has none"),
            ("teacher_logits", [[math.nan, 0.4]], "single_label_classification", "NaN beside numbers"),
        ],
    )
    def test_numbers_that_are_not_what_the_name_says_are_refused(self, column, values, problem_type, message):
        """Logits under the name of probabilities train without any error."""
        with pytest.raises(ValueError, match=message):
            combined(column, torch.tensor(values), problem_type)

    def test_another_number_of_labels_is_refused(self):
        """A column made with another label set."""
        with pytest.raises(ValueError, match="has 2 numbers in a row, the student has 3 labels"):
            TeacherColumn("teacher_logits", 3, CPU)({"teacher_logits": torch.zeros(4, 2)})

    def test_a_column_beside_a_teacher_is_refused(self):
        """Two answers, of which one is silently ignored."""
        rows = plain(tiny.text_rows(4), teacher_logits=[[0.0, 1.0, 2.0]] * 4)
        with pytest.raises(
            ValueError, match="have a column teacher_logits of soft targets, and a teacher was given too"
        ):
            trainer(tiny.bert(1), rows)
        both = plain(tiny.text_rows(4), teacher_logits=[[0.0, 1.0, 2.0]] * 4, teacher_probs=[[0.0, 1.0, 0.0]] * 4)
        with pytest.raises(ValueError, match="both columns teacher_logits and teacher_probs"):
            trainer(None, both)


class TestFunction:
    def test_it_teaches_as_the_model_that_it_calls(self):
        """A function that is run on other rows, or gets the labels."""
        teacher, rows = tiny.bert(1, initializer_range=0.3).eval(), tiny.text_rows(8)
        seen = []

        def function(batch):
            seen.append(set(batch))
            return teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

        taught = []
        for given in (teacher, function):
            made = trainer(given, rows, rows, max_steps=3, learning_rate=1e-2)
            made.train()
            taught.append(weights(made.model))
        assert seen
        assert all("labels" not in names for names in seen)
        assert all(torch.equal(taught[0][name], taught[1][name]) for name in taught[0])

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (torch.zeros(2, 5), r"must return a tensor of shape \(batch, 3\).* got shape \(2, 5\)"),
            (torch.zeros(2, 3, dtype=torch.long), "of floating numbers; got one of torch.int64"),
            (np.zeros((2, 3)), "got ndarray"),
        ],
    )
    def test_what_is_no_logits_is_refused(self, answer, message):
        """Class indices, or an array: an error deep in the loss."""
        with pytest.raises(ValueError, match=message):
            TeacherFunction(lambda batch: answer, 3, CPU)({"input_ids": torch.zeros(2, 4)})


class TestMissing:
    def test_a_column_without_any_soft_target_is_refused(self):
        """A training on the labels alone, at a tenth of their weight."""
        rows = plain(tiny.text_rows(4), teacher_logits=[[0.0, 1.0, 2.0]] * 4)
        empty = rows.remove_columns("teacher_logits").add_column(
            "teacher_logits", [None] * 4, feature=rows.features["teacher_logits"]
        )
        with pytest.raises(ValueError, match="no row of the training data has teacher_logits"):
            trainer(None, empty)

    def test_an_evaluation_without_soft_targets_claims_no_soft_loss(self):
        """A soft loss of 0: a perfect student, by the look of it."""
        rows = plain(tiny.text_rows(4), teacher_logits=[[0.0, 1.0, 2.0]] * 4)
        found = trainer(None, rows, rows.remove_columns("teacher_logits")).evaluate()
        assert "eval_label_loss" in found
        assert "eval_soft_loss" not in found
        assert found["eval_loss"] == found["eval_label_loss"]

    def test_an_infinite_number_in_a_later_batch_stops_the_training(self):
        """Weights of NaN and a logged loss of 0."""
        logits = [[0.0, 1.0, 2.0]] * 12
        logits[11] = [0.0, math.inf, 2.0]
        rows = plain(tiny.text_rows(12), teacher_logits=logits)
        with pytest.raises(ValueError, match="logits were NaN or infinite in 3 places"):
            trainer(None, rows, train_sampling_strategy="sequential", per_device_train_batch_size=4).train()

    @pytest.mark.parametrize("setting", [{"teacher_weights": [1.0]}, {"teacher_combination": "geometric"}])
    def test_settings_of_an_ensemble_are_refused_for_one_teacher(self, setting):
        """A setting without effect."""
        with pytest.raises(ValueError, match="is for several teachers, and there is one"):
            trainer(tiny.bert(1), tiny.text_rows(4), **setting)

    @pytest.mark.parametrize("setting", [{"teacher_input_columns": ["text"]}, {"teacher_max_length": 8}])
    def test_settings_of_a_teachers_own_inputs_need_its_processor(self, setting):
        """A column that is never read."""
        with pytest.raises(ValueError, match="pass its teacher_processing_class, or leave them out"):
            trainer(tiny.bert(1), tiny.text_rows(4), **setting)
