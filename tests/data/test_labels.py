"""Every kind of label becomes a class index, or is refused."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.data.labels import index_labels
from hf_distill.data.loading import load_rows, prepare_splits


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what these tests load out of the user's cache, and their output short."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(labels, feature=None) -> Dataset:
    columns = {"text": [f"t{i}" for i in range(len(labels))], "label": labels}
    return Dataset.from_dict(
        columns, features=None if feature is None else Features({"text": Value("string"), "label": feature})
    )


def index(train, evaluation=None, *, feature=None, label_names=None):
    """Return the indices of the training split, of the evaluation split, and the names."""
    splits = {"train": rows(train, feature), "evaluation": rows(train if evaluation is None else evaluation, feature)}
    indexed, names = index_labels(splits, "label", label_names=label_names)
    return indexed["train"]["labels"][:], indexed["evaluation"]["labels"][:], names


class TestKinds:
    @pytest.mark.parametrize(
        ("labels", "indices", "names"),
        [
            (["b", "a", "c"], [1, 0, 2], ("a", "b", "c")),
            ([1, 0, 2], [1, 0, 2], ("0", "1", "2")),
            ([30, 10, 20], [2, 0, 1], ("10", "20", "30")),
            ([False, True, True], [0, 1, 1], ("False", "True")),
            (["10", "2", "1"], [2, 1, 0], ("1", "2", "10")),
        ],
    )
    def test_indices_follow_the_sorted_labels(self, labels, indices, names):
        """Indices in order of appearance change with the order of the rows; text "10" would come before "2"."""
        assert index(labels) == (indices, indices, names)

    def test_named_classes_keep_their_numbers(self):
        """Classes numbered anew by those that occur, when the last one or the first one does not."""
        feature = ClassLabel(names=["zebra", "ant", "bee"])
        assert index([2, 1], [0], feature=feature) == ([2, 1], [0], ("zebra", "ant", "bee"))

    @pytest.mark.parametrize(
        ("labels", "feature"),
        [
            (["a", None, "", "b"], None),
            ([0, None, -100, 1], None),
            ([0, -100, None, 1], None),
            ([0, None, -1, 1], ClassLabel(names=["a", "b"])),
        ],
    )
    def test_missing_labels_are_minus_100_and_no_class(self, labels, feature):
        """A class of its own for the rows that have none."""
        indices, _, names = index(labels, feature=feature)
        assert indices == [0, -100, -100, 1]
        assert len(names) == 2

    def test_whole_numbers_with_empty_cells_in_a_csv_file(self):
        """Pandas reads such a column as 1.0 and 0.0."""
        Path("x.csv").write_text("text,label\na,1\nb,\nc,0\nd,1\ne,0\n")
        splits = prepare_splits(
            load_rows(path="x.csv"), "text-classification", train_split="train[:3]", eval_split="train[3:]"
        )
        assert splits.train["labels"][:] == [1, -100, 0]
        assert splits.evaluation["labels"][:] == [1, 0]
        assert splits.label_names == ("0", "1")

    def test_numbers_that_are_not_a_number_are_missing(self):
        """NaN in a parquet file."""
        assert index([1.0, float("nan"), 0.0])[0] == [1, -100, 0]

    def test_other_columns_are_left_as_they_are_and_the_old_label_goes(self):
        """Two label columns, one of them stale."""
        indexed, _ = index_labels({"train": rows(["b", "a"])}, "label")
        assert indexed["train"][:] == {"text": ["t0", "t1"], "labels": [1, 0]}
        named_labels = rows(["b", "a"]).rename_column("label", "labels")
        indexed, _ = index_labels({"train": named_labels}, "labels")
        assert indexed["train"][:] == {"text": ["t0", "t1"], "labels": [1, 0]}


class TestNames:
    def test_names_fix_the_order_of_labels_that_are_text(self):
        """A ready teacher whose order is not the alphabet's."""
        assert index(["neg", "pos", None], label_names=["pos", "neg"]) == ([1, 0, -100], [1, 0, -100], ("pos", "neg"))

    def test_names_are_given_to_numbers_and_classes_by_position(self):
        """A class that does not occur must keep its place."""
        assert index([0, 2, 0], label_names=["a", "b", "c"]) == ([0, 2, 0], [0, 2, 0], ("a", "b", "c"))
        feature = ClassLabel(names=["0", "1"])
        assert index([1, 0], feature=feature, label_names=["a", "b"])[2] == ("a", "b")

    @pytest.mark.parametrize(
        ("labels", "names", "message"),
        [
            (["a", "b"], ["a", "c"], "label 'b' in column 'label' of the train split is none of the 2 classes"),
            ([10, 20], ["a", "b"], r"label 10 in column 'label' of the train split is none of the 2 classes \[0, 1\]"),
            ([0, 1], ["a", "a"], r"data\.label_names names a class twice"),
        ],
    )
    def test_names_that_do_not_fit_the_labels(self, labels, names, message):
        """Names that are given to other classes than they mean."""
        with pytest.raises(ValueError, match=message):
            index(labels, label_names=names)

    def test_names_that_do_not_fit_the_classes(self):
        """The classes' own names in another order would swap what the numbers mean."""
        feature = ClassLabel(names=["neg", "pos"])
        with pytest.raises(ValueError, match=r"data\.label_names has the order \['pos', 'neg'\].*leave"):
            index([0, 1], feature=feature, label_names=["pos", "neg"])
        with pytest.raises(ValueError, match=r"data\.label_names has 3 names, the data have 2 classes"):
            index([0, 1], feature=feature, label_names=["a", "b", "c"])


class TestMixedLabels:
    def test_numbers_and_text_in_a_json_file(self):
        """1 and "1" would be two classes."""
        Path("x.json").write_text(json.dumps([{"text": "a", "label": 1}, {"text": "b", "label": "pos"}]))
        with pytest.raises(ValueError, match=r"data\.label_column 'label' holds values of several types \(1, 'pos'\)"):
            prepare_splits(load_rows(path="x.json"), "text-classification", train_split="train", eval_split="train")

    def test_numbers_and_text_in_a_csv_file(self):
        """All of them are read as text there: "1" and "pos" would be two classes of one."""
        Path("x.csv").write_text("text,label\na,1\nb,pos\nc,neg\n")
        loaded = load_rows(path="x.csv")
        options = {"train_split": "train", "eval_split": "train"}
        with pytest.raises(ValueError, match=r"mixes numbers \(1\) and text \(neg, pos\): .*data\.label_names"):
            prepare_splits(loaded, "text-classification", **options)
        named = prepare_splits(loaded, "text-classification", **options, label_names=["neg", "1", "pos"])
        assert named.train["labels"][:] == [1, 2, 0]

    def test_numbers_in_one_split_and_text_in_another(self):
        """Each split alone is in order."""
        with pytest.raises(ValueError, match="holds numbers in the train split, text in the evaluation split: make"):
            index([0, 1], ["a", "b"])

    def test_numbers_in_one_file_and_text_in_another(self):
        """The reader of the second file fails on what it expects after the first."""
        Path("data").mkdir()
        for split, labels in (("train", [0, 1]), ("validation", ["a", "b"])):
            Path(f"data/{split}.jsonl").write_text("\n".join(json.dumps({"text": "t", "label": x}) for x in labels))
        with pytest.raises(ValueError, match="Some rows hold numbers and others text in one column"):
            load_rows(path="data")

    def test_splits_with_other_classes(self):
        """The same number means another class in each split."""
        splits = {
            "train": rows([0, 1], ClassLabel(names=["a", "b"])),
            "evaluation": rows([0, 1], ClassLabel(names=["b", "a"])),
        }
        with pytest.raises(ValueError, match=r"the evaluation split has the classes \['b', 'a'\], the train split"):
            index_labels(splits, "label")


class TestRefused:
    @pytest.mark.parametrize(("train", "evaluation"), [(["a", "b"], ["a", "c"]), ([0, 1], [1, 2])])
    def test_a_label_that_the_training_split_does_not_have(self, train, evaluation):
        """A class that no model can predict, counted as wrong or as another."""
        with pytest.raises(ValueError, match=f"label {evaluation[1]!r} .* of the evaluation split is none of the 2"):
            index(train, evaluation)

    @pytest.mark.parametrize("labels", [["a", "a"], [1, -100], [-100, -100]])
    def test_fewer_than_two_classes(self, labels):
        """A classifier of one class is always right."""
        with pytest.raises(ValueError, match=r"too few classes .* two or more. An empty label, -1 and -100 count as"):
            index(labels)

    @pytest.mark.parametrize(
        ("labels", "found"),
        [([0.0, 0.5], "float"), ([[0], [1, 2]], "lists of int64"), ([None, None], "no label at all")],
    )
    def test_labels_of_another_kind(self, labels, found):
        """Scores rounded to classes; the first of several labels taken for the only one."""
        with pytest.raises(ValueError, match=f"data.label_column 'label' holds {found}.*: expected one label"):
            index(labels)

    def test_a_split_to_judge_on_without_labels(self):
        """The test splits of GLUE have -1 throughout: found out only after the teacher was trained."""
        with pytest.raises(ValueError, match=r"no row of the evaluation split has a label .*: choose another split"):
            index([0, 1], [-1, -1])


class TestWords:
    def splits(self, tags):
        words = [["w"] * (2 if row is None else len(row)) for row in tags]
        return {"train": Dataset.from_dict({"tokens": words, "tags": tags})}

    @pytest.mark.parametrize("tags", [[["O", "B"], ["I"]], [[2, 0], [1]]])
    def test_each_word_has_its_label(self, tags):
        """Classes counted by row and not by word."""
        indexed, names = index_labels(self.splits(tags), "tags", words="tokens")
        assert len(names) == 3
        found = indexed["train"]["labels"][:]
        assert [[names[i] for i in row] for row in found] == [[str(tag) for tag in row] for row in tags]

    def test_missing_labels_of_words_and_of_whole_rows(self):
        """An unlabelled row still teaches, and must not stop the run."""
        indexed, _ = index_labels(self.splits([["O", None], None, ["B", ""]]), "tags", words="tokens")
        assert indexed["train"]["labels"][:] == [[1, -100], [-100, -100], [0, -100]]

    def test_named_classes_of_words(self):
        """Tags of the Hub's data sets are lists of ClassLabel."""
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B"]))})
        rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, -100]]}, features=features)
        indexed, names = index_labels({"train": rows}, "tags", words="tokens")
        assert names == ("O", "B")
        assert indexed["train"]["labels"][:] == [[1, -100]]

    def test_one_label_for_a_row_of_words(self):
        """The task is another one."""
        rows = Dataset.from_dict({"tokens": [["a"], ["b"]], "tags": [0, 1]})
        with pytest.raises(ValueError, match="holds int64: expected a list of labels, one for each word"):
            index_labels({"train": rows}, "tags", words="tokens")

    def test_minus_one_among_plain_numbers(self):
        """The classes -1, 0 and 1 of a sentiment become two, and every negative row unlabelled."""
        with pytest.raises(ValueError, match=r"holds -1 beside other numbers.*a class or a missing label"):
            index([-1, 0, 1, 0])
