"""Splits drawn by class and content, and warnings of splits that tell less than they seem to."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_distill.data.loading import fingerprint, load_rows, prepare_splits
from hf_distill.data.splitting import draw

TEXT, TOKENS, IMAGES = "text-classification", "token-classification", "image-classification"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what these tests load out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def table(texts, labels, **columns) -> Dataset:
    return Dataset.from_dict({"text": list(texts), "labels": list(labels), **columns})


def drawn(rows: Dataset, *fractions: float, seed: int = 0, inputs: tuple[str, ...] = ("text",)) -> list[list[int]]:
    return [part.tolist() for part in draw(rows, inputs, fractions, seed)]


def named(labels, *, prefix: str = "") -> Dataset:
    """Rows with different texts and the classes a, b, c, of which some may be in no row."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict(
        {"text": [f"{prefix}{place}" for place in range(len(labels))], "label": list(labels)}, features=features
    )


class TestDraw:
    ORDERED = table(map(str, range(300)), [0] * 200 + [1] * 70 + [2] * 30)

    def test_each_class_gives_its_share_whatever_the_order_of_the_rows(self):
        """The last tenth of rows in the order of their classes is one class: a student of accuracy 0."""
        rest, part = drawn(self.ORDERED, 0.1)
        assert sorted(rest + part) == list(range(300))
        assert Counter(self.ORDERED[part]["labels"]) == {0: 20, 1: 7, 2: 3}
        assert part != list(range(180, 200)) + list(range(263, 270)) + list(range(297, 300))

    def test_two_parts_are_apart(self):
        """Rows of the final results among those by which a checkpoint was chosen."""
        rest, evaluation, test = drawn(self.ORDERED, 0.1, 0.2)
        assert sorted(rest + evaluation + test) == list(range(300))
        assert [len(part) for part in (rest, evaluation, test)] == [210, 30, 60]
        assert Counter(self.ORDERED[test]["labels"]) == {0: 40, 1: 14, 2: 6}
        assert drawn(self.ORDERED, 0.1)[1] == evaluation

    def test_the_seed_and_the_contents_decide_and_not_the_order(self):
        """A file that is written in another order moves rows from one side to the other."""
        order = np.random.default_rng(0).permutation(300)
        part, shuffled = drawn(self.ORDERED, 0.1)[1], drawn(self.ORDERED.select(order), 0.1)[1]
        assert sorted(order[shuffled]) == part
        assert drawn(self.ORDERED, 0.1, seed=1)[1] != part

    @pytest.mark.slow
    def test_every_process_and_machine_draws_the_same(self):
        """Processes of one run that train on each other's evaluation rows."""
        code = (
            "from datasets import Dataset; from hf_distill.data.splitting import draw\n"
            "rows = Dataset.from_dict({'text': list('abcdefghij'), 'labels': [0, 1] * 5})\n"
            "print([part.tolist() for part in draw(rows, ['text'], [0.4], 42)])"
        )
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert printed == "[[1, 2, 4, 7, 8, 9], [0, 3, 5, 6]]\n"

    def test_equal_inputs_stay_together(self):
        """Texts that were learned by heart are counted as understood."""
        rows = table([str(i // 3) for i in range(300)], [i // 150 for i in range(300)])
        rest, part = (set(rows[part]["text"]) for part in drawn(rows, 0.2))
        assert not rest & part
        assert len(part) == 20

    def test_pairs_are_equal_if_both_texts_are(self):
        """One premise has many hypotheses, which are different inputs."""
        rows = table(["p"] * 10, [0] * 10, other=[str(i // 2) for i in range(10)])
        _, part = drawn(rows, 0.2, inputs=("text", "other"))
        assert len(part) == 2
        assert part[0] // 2 == part[1] // 2

    def test_one_image_in_two_files_is_one_input(self):
        """Copies of an image under several names are on both sides."""
        for label in ("cat", "dog"):
            Path(f"images/train/{label}").mkdir(parents=True)
            for number in range(20):
                color = (10 * (number // 2), 200 * (label == "dog"), 0)
                Image.new("RGB", (4, 4), color).save(f"images/train/{label}/{number}.png")
        splits = prepare_splits(load_rows(path="images"), IMAGES, eval_split=0.2)
        contents = [{image.tobytes() for image in rows["image"]} for rows in (splits.train, splits.evaluation)]
        assert not contents[0] & contents[1]
        assert Counter(splits.evaluation["labels"]) == {0: 4, 1: 4}

    @pytest.mark.parametrize(
        ("sizes", "fractions", "parts"),
        [
            ([1], [0.1], [1, 0]),
            ([1, 1], [0.1], [1, 1]),
            ([1, 1], [0.1, 0.1], [1, 1, 0]),
            ([1, 1, 1], [0.1, 0.1], [1, 1, 1]),
            ([1, 1, 1], [0.9], [1, 2]),
            ([1, 1, 1], [0.5, 0.4], [1, 1, 1]),
            ([50, 1], [0.1], [50, 1]),
            ([50, 40], [0.1], [50, 40]),
            ([60, 5, 5], [0.1], [65, 5]),
        ],
    )
    def test_a_class_with_few_inputs_has_one_in_the_rest_then_one_in_each_part(self, sizes, fractions, parts):
        """A class that is trained on and never evaluated, or the other way."""
        texts = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
        assert [len(part) for part in drawn(table(texts, [0] * len(texts)), *fractions)] == parts

    def test_rows_without_a_label_stay_in_the_rest(self):
        """An evaluation split of rows that nothing can be compared with."""
        rows = table(map(str, range(100)), [-100] * 60 + [0, 1] * 20)
        rest, part = drawn(rows, 0.1)
        assert len(part) == 4
        assert min(part) >= 60
        same = table(["same", *map(str, range(9)), "same"], [-100, *[0] * 10])
        for seed in range(9):
            rest, _ = drawn(same, 0.5, seed=seed)
            assert (0 in rest) == (10 in rest)

    def test_rows_of_words_are_drawn_whatever_their_tags_are(self):
        """Their labels are lists."""
        features = Features({"text": List(Value("string")), "labels": List(Value("int64"))})
        rows = Dataset.from_dict(
            {"text": [[str(i)] for i in range(40)], "labels": [[-100] if i < 20 else [i % 3] for i in range(40)]},
            features=features,
        )
        _, part = drawn(rows, 0.25)
        assert len(part) == 5
        assert min(part) >= 20

    @given(
        rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
        fractions=st.sampled_from([(0.1,), (0.5,), (0.2, 0.2), (0.4, 0.5)]),
        seed=st.integers(0, 5),
    )
    @settings(max_examples=60, deadline=None)
    def test_no_row_is_lost_or_twice_and_no_class_leaves_the_rest(self, rows, fractions, seed):
        """Whatever texts come with whatever labels, several for one text included."""
        texts, labels = [str(text) for text, _ in rows], [label - 1 if label else -100 for _, label in rows]
        parts = drawn(table(texts, labels), *fractions, seed=seed)
        assert sorted(row for part in parts for row in part) == list(range(len(rows)))
        contents = [{texts[row] for row in part} for part in parts]
        assert sum(map(len, contents)) == len(set(texts))
        of_text = {
            text: min((n for t, n in zip(texts, labels, strict=True) if t == text and n >= 0), default=-100)
            for text in texts
        }
        classes = [{of_text[text] for text in content} - {-100} for content in contents]
        assert all(part <= classes[0] for part in classes)


class TestFractions:
    ROWS = DatasetDict(train=named([0] * 30 + [1] * 20 + [2] * 10), test=named([0, 1, 2], prefix="t"))

    def test_a_fraction_is_drawn_from_the_training_split_or_the_part_that_is_named(self):
        """Rows that the recipe has left out come back."""
        splits = prepare_splits(self.ROWS, TEXT, train_split="train[:50]", eval_split=0.1, test_split="test")
        assert [len(rows) for rows in splits.named().values()] == [45, 5, 3]
        assert max(map(int, [*splits.train["text"], *splits.evaluation["text"]])) == 49

    def test_max_train_rows_leave_the_evaluation_rows_as_they_are(self):
        """Runs on more and on fewer rows are compared on different ones."""
        whole, few = (prepare_splits(self.ROWS, TEXT, eval_split=0.2, max_train_rows=n) for n in (None, 40))
        assert whole.evaluation[:] == few.evaluation[:]
        assert len(few.train) == 40
        assert set(few.train["text"]) < set(whole.train["text"])

    def test_a_split_of_the_data_is_guessed_beside_a_fraction_for_the_other_role(self):
        """`test_split: 0.2` would need an eval_split that the data have already."""
        splits = prepare_splits(self.ROWS, TEXT, test_split=0.2)
        assert [len(rows) for rows in splits.named().values()] == [48, 3, 12]

    def test_the_seed_of_the_training_holds_out_the_same_rows(self):
        """A ready teacher that is evaluated on rows that it was trained on, with another seed."""
        one, other = (prepare_splits(self.ROWS, TEXT, eval_split=0.2, seed=seed) for seed in (1, 2))
        assert one.evaluation[:] == other.evaluation[:]

    def test_other_splits_have_another_fingerprint(self):
        """A run that goes on with models which were trained on today's evaluation rows."""
        first, again, *others = (
            fingerprint(prepare_splits(self.ROWS, TEXT, **options))
            for options in (
                {"eval_split": 0.1},
                {"eval_split": 0.1},
                {"eval_split": 0.1, "split_seed": 1},
                {"eval_split": 0.2},
                {"eval_split": 0.1, "test_split": 0.1},
            )
        )
        assert first == again
        assert len({first, *others}) == 4

    @pytest.mark.parametrize(
        "rows",
        [
            {"text": ["x"] * 9, "label": [0, 1, 2] * 3},
            {"text": ["x", "y", "z"], "label": [None, None, None]},
            {"text": ["x", "y", "z"], "label": [0, 1, 2]},
        ],
        ids=["one input", "no labels", "one row of each class"],
    )
    def test_a_fraction_that_draws_nothing_is_an_error(self, rows):
        """Metrics of no rows, or a division by zero."""
        rows = Dataset.from_dict(rows, features=named([]).features)
        with pytest.raises(ValueError, match=r"data\.eval_split: 0\.1 of train draws no row: no class has enough diff"):
            prepare_splits(DatasetDict(train=rows), TEXT, eval_split=0.1)


class TestWarnings:
    def warnings(self, train, evaluation, **options) -> list[str]:
        rows = DatasetDict(train=train, validation=evaluation)
        return list(prepare_splits(rows, TEXT, **options).warnings)

    def test_good_splits_have_none(self):
        """Who is warned each time reads no warning."""
        rows = named([0, 1, 2] * 10)
        assert self.warnings(rows, named([0, 1, 2], prefix="v")) == []
        assert self.warnings(rows, named([0]), eval_split=0.3, test_split=0.1) == []
        assert self.warnings(named([-1] * 5), named([0, 1, 2], prefix="v")) == []  # a ready teacher needs no labels

    def test_parts_of_ordered_rows_lack_each_others_classes(self):
        """A student of accuracy 0.000, or a teacher that is called untrained."""
        rows = DatasetDict(train=named([0] * 50 + [1] * 45 + [2] * 5))
        first, second = prepare_splits(rows, TEXT, train_split="train[:90%]", eval_split="train[90%:]").warnings
        assert first == (
            "data: the train split (data.train_split: train[:90%]) has no row of 1 of the 2 classes that the "
            "evaluation split (data.eval_split: train[90%:]) has (c): no student learns them from labels. If the rows "
            "are ordered by class, divide them at random: data.eval_split: 0.1"
        )
        assert "the evaluation split (data.eval_split: train[90%:]) has no row of 1 of the 2 classes" in second
        assert prepare_splits(rows, TEXT, eval_split=0.1).warnings == ()

    def test_classes_that_a_fraction_cannot_divide_are_named(self):
        """A class of one row, on which nothing can be evaluated."""
        rows = DatasetDict(train=named([0] * 20 + [1] * 20 + [2]))
        (line,) = prepare_splits(rows, TEXT, eval_split=0.1).warnings
        assert "(data.eval_split: 0.1) has no row of 1 of the 3 classes that the train split" in line
        assert line.endswith("A class is in both splits if it has two different inputs")

    @pytest.mark.parametrize("role", ["evaluation", "test"])
    def test_one_class_to_evaluate_on_is_an_error(self, role):
        """Accuracy 1.0 or 0.0, whatever the student has learned."""
        rows = DatasetDict(
            train=named([0, 1, 2] * 4), good=named([0, 1, 2], prefix="g"), bad=named([1, -1], prefix="b")
        )
        options = {"eval_split": "bad"} if role == "evaluation" else {"eval_split": "good", "test_split": "bad"}
        key = "eval_split" if role == "evaluation" else "test_split"
        with pytest.raises(
            ValueError,
            match=rf"all labels of the {role} split \(data\.{key}: bad\) are of one of the 3 classes, b: .*0\.1",
        ):
            prepare_splits(rows, TEXT, **options)

    def test_labels_that_the_training_part_lacks_say_how_to_divide_rows_in_order(self):
        """Labels of text are classes only if the training split has them, so this is where ordered rows end."""
        rows = DatasetDict(train=Dataset.from_dict({"text": list("abcdefgh"), "label": list("xxxyyyzz")}))
        with pytest.raises(
            ValueError, match=r"label 'z' .* of the evaluation split is none of .*data\.eval_split: 0\.1"
        ):
            prepare_splits(rows, TEXT, train_split="train[:6]", eval_split="train[6:]")

    @pytest.mark.parametrize(("evaluation", "count"), [("train", 60), ("train[40:]", 20), ("train[:3]", 3)])
    def test_splits_that_overlap_are_counted(self, evaluation, count):
        """What was learned by heart counted as understood."""
        rows = DatasetDict(train=named([0, 1, 2] * 20))
        (line,) = prepare_splits(rows, TEXT, eval_split=evaluation).warnings
        assert line.startswith(
            f"data: {count} of the {count} rows of the evaluation split (data.eval_split: {evaluation}) have inputs "
            "that the train split (data.train_split: train) has, too: "
        )
        assert "data.eval_split: 0.1" in line

    def test_equal_inputs_are_counted_with_those_that_have_another_label(self):
        """A text and its copy with another label, each on its side: no model can be right about both."""
        train = Dataset.from_dict({"text": ["x", "x", "y", "z", "u"], "label": [0, 1, 0, 2, -1]})
        evaluation = Dataset.from_dict({"text": ["x", "y", "y", "u", "new", "z"], "label": [0, 1, 0, 0, 2, -1]})
        features = named([]).features
        (line,) = self.warnings(train.cast(features), evaluation.cast(features))
        assert line.startswith("data: 5 of the 6 rows of the evaluation split")
        assert "has, too, 1 of them with another label: " in line

    def test_the_rows_of_the_final_results_are_compared_with_both_others(self):
        """A checkpoint chosen on the rows that the results come from."""
        rows = DatasetDict(train=named([0, 1, 2] * 3), dev=named([0, 1, 2], prefix="d"))
        (line,) = prepare_splits(rows, TEXT, eval_split="dev", test_split="dev").warnings
        assert line.startswith(
            "data: 3 of the 3 rows of the test split (data.test_split: dev) have inputs that the eval"
        )
        rows["both"] = datasets.concatenate_datasets([rows["dev"], rows["train"].select([0])])
        lines = prepare_splits(rows, TEXT, eval_split="dev", test_split="both").warnings
        assert [line.split(" rows of")[0] for line in lines] == ["data: 1 of the 4", "data: 3 of the 4"]

    def test_a_fraction_is_compared_with_a_split_of_the_data(self):
        """Only the rows that were drawn together have no equal inputs for sure."""
        rows = DatasetDict(train=named([0, 1, 2] * 20), test=named([0, 1, 2]))
        lines = prepare_splits(rows, TEXT, eval_split=0.5, test_split="test").warnings
        assert sum(int(line.split()[1]) for line in lines) == 3

    def test_words_with_tags(self):
        """Their labels are lists, and their classes are the tags."""

        def words(texts, tags):
            features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "A", "B"]))})
            return Dataset.from_dict({"tokens": texts, "tags": tags}, features=features)

        rows = DatasetDict(
            train=words([["x", "y"], ["z", "y"], ["w"]], [[0, 1], [0, 0], [1]]),
            test=words([["x", "y"], ["new", "y"]], [[0, 2], [0, 1]]),
        )
        first, second = prepare_splits(rows, TOKENS).warnings
        assert "has no row of 1 of the 3 classes that the evaluation split (data.eval_split: test) has (B)" in first
        assert second.startswith("data: 1 of the 2 rows of the evaluation split")
        assert "1 of them with another label" in second


@pytest.mark.slow
def test_real_images_in_the_order_of_their_classes(test_data):
    """Sixty thousand images, whose last tenth are two digits."""
    rows = load_rows(path=f"{test_data}/data/mnist")
    order = np.argsort(rows["train"]["label"][:], kind="stable")
    ordered = DatasetDict(train=rows["train"].select(order))
    by_position = prepare_splits(ordered, IMAGES, train_split="train[:90%]", eval_split="train[90%:]").warnings
    assert len(by_position) == 2
    assert "has no row of 1 of the 2 classes that the evaluation split" in by_position[0]
    splits = prepare_splits(ordered, IMAGES, eval_split=0.1)
    assert splits.warnings == ()
    counts = [Counter(part["labels"][:]) for part in (splits.train, splits.evaluation)]
    assert all(
        counts[1][digit] == pytest.approx(0.1 * (counts[0][digit] + counts[1][digit]), abs=0.6) for digit in range(10)
    )
    assert prepare_splits(rows, IMAGES).warnings == ()


def test_real_texts_of_which_some_are_there_twice(test_data):
    """SST-2 has 371 phrases that are there before, and two of its test sentences among the training ones."""
    rows = load_rows(path=f"{test_data}/data/sst2")
    splits = prepare_splits(rows, TEXT, eval_split=0.1)
    assert not set(splits.train["sentence"]) & set(splits.evaluation["sentence"])
    assert prepare_splits(rows, TEXT).warnings == ()
