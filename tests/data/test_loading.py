"""Splits and columns of every kind of local data set."""

import json
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hf_distill.data.loading import choose_splits, find_columns, load_rows, prepare_splits, reorder_labels

ROWS = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
TEXT, TOKENS, IMAGES = "text-classification", "token-classification", "image-classification"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what these tests load out of the user's cache, and their output short."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table(**columns) -> Dataset:
    return Dataset.from_dict(columns)


def write_csv(path: str, *lines: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n")
    return path


def write_image(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (10, 20, 30)).save(path)


class TestSources:
    @pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.tsv", "x.json", "x.jsonl", "X.CSV"])
    def test_a_file_of_each_type_gives_the_same_rows(self, name):
        """A tsv file read with commas has one column with everything in it."""
        if name.endswith("parquet"):
            table(**ROWS).to_parquet(name)
        elif name.endswith(("json", "jsonl")):
            lines = [json.dumps({"text": text, "label": label}) for text, label in zip(*ROWS.values(), strict=True)]
            Path(name).write_text(f"[{','.join(lines)}]" if name.endswith("json") else "\n".join(lines))
        else:
            mark = "\t" if name.endswith("tsv") else ","
            write_csv(name, f"text{mark}label", *(f"{t}{mark}{n}" for t, n in zip(*ROWS.values(), strict=True)))
        loaded = load_rows(path=name)
        assert list(loaded) == ["train"]
        assert loaded["train"][:] == ROWS

    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    def test_a_folder_of_files_has_the_splits_that_they_are_named_after(self, kind):
        """Test rows that land in the training split."""
        Path("data").mkdir()
        for place, split in enumerate(["train", "validation", "test"]):
            part = table(text=[split], label=[place])
            getattr(part, f"to_{kind}")(f"data/{split}.{kind}")
        loaded = load_rows(path="data")
        assert {split: rows[:]["text"] for split, rows in loaded.items()} == {
            "train": ["train"],
            "validation": ["validation"],
            "test": ["test"],
        }

    def test_a_folder_of_images_takes_its_classes_from_the_folders(self):
        """Classes numbered by each split's own folders: cat is 0 in one and dog is 0 in the other."""
        for path in ["train/cat/1.png", "train/dog/2.png", "train/dog/3.png", "test/cat/4.png", "test/dog/5.png"]:
            write_image(f"images/{path}")
        splits = prepare_splits(load_rows(path="images"), IMAGES)
        assert splits.columns.inputs == ("image",)
        assert splits.label_names == ("cat", "dog")
        assert splits.train["labels"][:] == [0, 1, 1]
        assert splits.evaluation["labels"][:] == [0, 1]

    def test_what_save_to_disk_wrote_is_read_back(self):
        """A folder of Arrow files taken for a folder of unknown files."""
        table(**ROWS).save_to_disk("one")
        DatasetDict(train=table(**ROWS), dev=table(text=["z"], label=[1])).save_to_disk("several")
        one, several = load_rows(path="one"), load_rows(path="several")
        assert list(one) == ["train"]
        assert one["train"][:] == ROWS
        assert several["dev"][:] == {"text": ["z"], "label": [1]}

    def test_digits_are_the_same_each_time_and_hold_every_class_in_both_splits(self):
        """A split drawn anew each time would put test rows among the training rows."""
        first, second = load_rows(dataset="sklearn:digits"), load_rows(dataset="sklearn:digits")
        assert {split: len(rows) for split, rows in first.items()} == {"train": 1347, "test": 450}
        for split in ("train", "test"):
            assert set(first[split]["label"]) == set(range(10))
            assert first[split]["label"][:] == second[split]["label"][:]
        image = first["train"][0]["image"]
        assert (image.mode, image.size) == ("L", (8, 8))
        assert image.getextrema() == (0, 255)
        assert first["train"][7]["image"].tobytes() == second["train"][7]["image"].tobytes()

    def test_words_that_pandas_reads_as_missing_stay_words(self):
        """A class named None, or a text NA, would silently become a missing label or an empty text."""
        lines = ["text,label", "NA,None", "null,some", "x,"]
        write_csv("one.csv", *lines)
        write_csv("folder/train.csv", *lines)
        for path in ("one.csv", "folder"):
            rows = load_rows(path=path)["train"]
            assert rows[:] == {"text": ["NA", "null", "x"], "label": ["None", "some", None]}

    def test_a_file_that_has_changed_is_read_anew(self):
        """The cache would hand out the rows of yesterday."""
        write_csv("x.csv", "text,label", "old,1")
        assert load_rows(path="x.csv")["train"]["text"][:] == ["old"]
        write_csv("x.csv", "text,label", "new!,1")
        assert load_rows(path="x.csv")["train"]["text"][:] == ["new!"]


class TestUnreadableSources:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("x.parquet", b"this is not parquet", "not a parquet file"),
            ("x.csv", b"\xff\xfe\x00\xd8 no text", "can't decode"),
            ("x.jsonl", b"{no json", "JSON parse error"),
            ("x.csv", b"", "it has no rows"),
            ("x.csv", b"text,label\n", "it has no rows"),
            ("x.xlsx", b"", r"expected a file that ends in \.parquet, \.csv.*got x\.xlsx"),
        ],
    )
    def test_a_damaged_or_empty_file_is_named_with_the_reason_in_one_line(self, name, content, reason):
        """A traceback from the depths of pyarrow, or a run on no rows."""
        Path(name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"data: cannot read {name}: .*{reason}") as caught:
            load_rows(path=name)
        assert "\n" not in str(caught.value)

    def test_a_path_that_is_not_there(self):
        """The Hub would be searched for a folder with a typing error."""
        with pytest.raises(ValueError, match=r"data: cannot read nowhere/x.csv: there is no such file or folder"):
            load_rows(path="nowhere/x.csv")

    def test_an_empty_folder(self):
        """A run on no rows."""
        Path("empty").mkdir()
        with pytest.raises(ValueError, match=r"data: cannot read empty: .*doesn't contain any data files"):
            load_rows(path="empty")

    def test_files_of_one_folder_with_other_columns(self):
        """The error that names the columns hides behind one that says that there was an error."""
        write_csv("data/train.csv", "text,label", "a,x")
        write_csv("data/validation.csv", "sentence,label", "a,x")
        with pytest.raises(ValueError, match=r"train\.csv has the column 'text', which validation\.csv lacks"):
            load_rows(path="data")

    def test_a_hub_id_is_never_a_folder_that_lies_here(self):
        """Rows of somebody's files under the name of a data set of the Hub."""
        write_csv("stanfordnlp/sst2/train.csv", "text,label", "a,0")
        with pytest.raises(
            ValueError, match=r"stanfordnlp/sst2 is a Hub id, and there is a file or folder .* write data\.path"
        ):
            load_rows(dataset="stanfordnlp/sst2")

    def test_a_data_set_that_is_not_on_the_hub(self):
        """The remedy: local files have a key of their own."""
        with pytest.raises(
            ValueError, match=r"data: cannot read no/such.*a local file or folder is named by data\.path"
        ):
            load_rows(dataset="no/such")

    def test_another_data_set_of_scikit_learn(self):
        """It would be looked for on the Hub."""
        with pytest.raises(ValueError, match=r"data\.dataset: 'sklearn:iris' is not known.*sklearn:digits"):
            load_rows(dataset="sklearn:iris")


class TestSplits:
    ROWS = DatasetDict(train=table(n=list(range(20))), dev=table(n=[100]), test=table(n=[200]), none=table(n=[]))

    def choose(self, train="train", evaluation=None, test=None):
        _, chosen = choose_splits(self.ROWS, train=train, evaluation=evaluation, test=test)
        return [chosen[role]["n"][:] if role in chosen else None for role in ("train", "evaluation", "test")]

    def test_parts_of_a_split_are_apart_and_make_up_the_whole(self):
        """Rows that are trained on and judged on."""
        train, evaluation, _ = self.choose("train[:90%]", "train[90%:]")
        assert train == list(range(18))
        assert evaluation == [18, 19]

    @pytest.mark.parametrize(
        ("spec", "rows"),
        [
            ("train[:3]", [0, 1, 2]),
            ("train[-2:]", [18, 19]),
            ("train[18:99]", [18, 19]),
            ("train[25%:50%]", [5, 6, 7, 8, 9]),
        ],
    )
    def test_a_part_is_what_the_same_slice_of_a_list_is(self, spec, rows):
        """Off by one, or an error for an end beyond the rows."""
        assert self.choose(spec)[0] == rows

    def test_the_evaluation_split_is_guessed_in_a_fixed_order(self):
        """The test split would be used up for evaluation where there is a dev split."""
        assert self.choose()[1] == [100]
        assert self.choose(train="dev")[1] == [200]
        assert self.choose(test="test")[2] == [200]
        assert self.choose()[2] is None

    def test_without_a_split_to_judge_on_it_says_how_to_divide_one(self):
        """The training rows would be judged on, or rows that are the last classes of an ordered file."""
        with pytest.raises(ValueError, match=r"data\.eval_split is not set.*have train\..*data\.eval_split: 0\.1"):
            choose_splits(DatasetDict(train=table(n=[1])), train="train", evaluation=None, test=None)

    def test_max_train_rows_are_drawn_by_the_seed_alone(self):
        """The first rows of a sorted file hold one class; a draw that changes makes runs incomparable."""
        rows = DatasetDict(train=table(text=[str(i) for i in range(20)], label=[0] * 5 + [1] * 15))
        rows["dev"] = table(text=["x", "y"], label=[0, 1])

        def drawn(count, seed=0):
            splits = prepare_splits(rows, TEXT, max_train_rows=count, seed=seed)
            assert splits.evaluation["text"][:] == ["x", "y"]
            return [int(text) for text in splits.train["text"][:]]

        first, again, other = (drawn(5, seed) for seed in (1, 1, 2))
        assert first == again
        assert len(set(first)) == 5
        assert set(first) != set(range(5))
        assert first != other
        assert drawn(99) == list(range(20))

    @pytest.mark.parametrize("key", ["train", "evaluation", "test"])
    def test_a_split_that_is_not_there_is_named_with_those_that_are(self, key):
        """A split of another name taken in its place."""
        option = {"train": "train_split", "evaluation": "eval_split", "test": "test_split"}[key]
        with pytest.raises(ValueError, match=rf"data\.{option}: .*no split 'nope', only train, dev, test, none"):
            self.choose(**{key: "nope"})

    @pytest.mark.parametrize("spec", ["none", "train[:0]", "train[50:]", "train[:1%]"])
    def test_a_split_without_rows(self, spec):
        """Metrics of no rows."""
        with pytest.raises(ValueError, match=r"data\.eval_split: split .* has no rows"):
            self.choose(evaluation=spec)

    @pytest.mark.parametrize("spec", ["train[:9x%]", "train[:90", "train[:200%]", "train[:1]+dev"])
    def test_a_part_that_is_not_one(self, spec):
        """The whole split taken for a part that cannot be read."""
        with pytest.raises(ValueError, match=r"is not a split or a part of one, such as train\[:90%\]"):
            self.choose(spec)


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "task", "inputs", "label"),
        [
            ({"id": [1], "text": ["x"], "label": [0]}, TEXT, ("text",), "label"),
            (
                {"premise": ["x"], "hypothesis": ["y"], "idx": [1], "label": [0]},
                TEXT,
                ("premise", "hypothesis"),
                "label",
            ),
            ({"question2": ["x"], "question1": ["y"], "labels": [0]}, TEXT, ("question1", "question2"), "labels"),
            ({"text": ["x"], "label": ["a"]}, TEXT, ("text",), "label"),
            ({"tokens": [["x"]], "ner_tags": [[1]], "spans": [["y"]]}, TOKENS, ("tokens",), "ner_tags"),
            ({"tokens": [["x"]], "ner_tags": [[1]], "num_tags": [1]}, TOKENS, ("tokens",), "ner_tags"),
            ({"words": [["x"]], "tags": [["B"]]}, TOKENS, ("words",), "tags"),
            ({"words": [["x"]], "lemmas": [["y"]], "upos_tags": [["B"]]}, TOKENS, ("words",), "upos_tags"),
            (
                {"id": ["7"], "sentence1": ["x"], "sentence2": ["y"], "label": [0]},
                TEXT,
                ("sentence1", "sentence2"),
                "label",
            ),
            ({"tokens": [["x"]], "lemmas": [["y"]], "tags": [[1]]}, TOKENS, ("tokens",), "tags"),
        ],
    )
    def test_columns_are_guessed_where_there_is_one_guess(self, columns, task, inputs, label):
        """The label column of text read as an input gives a perfect score; half a pair a bad one."""
        found = find_columns(table(**columns), task)
        assert (found.inputs, found.label) == (inputs, label)

    def test_the_only_column_of_classes_is_the_label(self):
        """`fine_label`, `intent` and the like are found by what they are."""
        features = Features({"text": Value("string"), "intent": ClassLabel(names=["a", "b"])})
        assert (
            find_columns(Dataset.from_dict({"text": ["x"], "intent": [0]}, features=features), TEXT).label == "intent"
        )

    def test_named_columns_are_taken_before_any_guess(self):
        """A guess in place of what the recipe says."""
        rows = table(sentence1=["a"], sentence2=["b"], text=["c"], label=[0], gold=[1])
        assert find_columns(rows, TEXT, text_column="text").inputs == ("text",)
        found = find_columns(rows, TEXT, text_column="text", text_pair_column="sentence1", label_column="gold")
        assert (found.inputs, found.label) == (("text", "sentence1"), "gold")
        words = table(tokens=[["a"]], lemmas=[["b"]], tags=[[1]])
        assert find_columns(words, TOKENS, text_column="lemmas").inputs == ("lemmas",)

    @pytest.mark.parametrize("key", ["text_column", "text_pair_column", "label_column"])
    def test_a_column_that_is_not_there_is_named_with_those_that_are(self, key):
        """A typing error in the recipe."""
        named = {"text_column": "text", key: "nope"}
        with pytest.raises(ValueError, match=rf"data\.{key}: the data have no column 'nope', only text, label"):
            find_columns(table(text=["x"], label=[0]), TEXT, **named)

    def test_a_column_of_the_wrong_kind_is_refused_before_it_reaches_a_model(self):
        """Numbers given to a tokenizer and paths to an image processor fail late and far away."""
        rows = table(text=["x"], file=["a.png"], number=[1], label=["a"])
        with pytest.raises(ValueError, match=r"data\.text_column 'number' .* holds no text: text are in text, file"):
            find_columns(rows, TEXT, text_column="number")
        with pytest.raises(ValueError, match=r"data\.image_column 'file' .* holds no images"):
            find_columns(rows, IMAGES, image_column="file")
        with pytest.raises(ValueError, match=r"data\.text_column 'text' .* holds no lists of words"):
            find_columns(rows, TOKENS, text_column="text", label_column="label")

    def test_the_label_cannot_be_an_input(self):
        """A model that reads the answer."""
        with pytest.raises(ValueError, match=r"data\.text_column 'label' is the label column"):
            find_columns(table(text=["x"], label=["a"]), TEXT, text_column="label")

    def test_where_several_guesses_are_possible_none_is_made(self):
        """Two columns of text that are no known pair."""
        with pytest.raises(
            ValueError, match=r"data\.text_column is not set and cannot be guessed: title, body all hold"
        ):
            find_columns(table(title=["x"], body=["y"], label=[0]), TEXT)
        with pytest.raises(ValueError, match=r"data\.label_column is not set and cannot be guessed: no column"):
            find_columns(table(text=["x"], stars=[0]), TEXT)

    @pytest.mark.parametrize(
        ("columns", "task", "key", "candidates"),
        [
            ({"text": ["x"], "label": [0], "labels": [1]}, TEXT, "label_column", "label, labels"),
            ({"tokens": [["x"]], "pos_tags": [[1]], "ner_tags": [[2]]}, TOKENS, "label_column", "pos_tags, ner_tags"),
            ({"tokens": [["x"]], "ner_tags": [[1]], "labels": [[2]]}, TOKENS, "label_column", "ner_tags, labels"),
            ({"tokens": [["x"]], "words": [["y"]], "tags": [[1]]}, TOKENS, "text_column", "tokens, words"),
            (
                {name: ["x"] for name in ("premise", "hypothesis", "question1", "question2")} | {"label": [0]},
                TEXT,
                "text_column",
                "premise with hypothesis, question1 with question2",
            ),
            (
                {"sentence1": ["x"], "sentence2": ["y"], "text": ["z"], "label": [0]},
                TEXT,
                "text_column",
                "sentence1 with sentence2, text",
            ),
        ],
    )
    def test_two_columns_with_usual_names_are_asked_for(self, columns, task, key, candidates):
        """The raw labels of a second annotator, or parts of speech for names, learned without a word."""
        with pytest.raises(
            ValueError,
            match=rf"data\.{key} is not set and cannot be guessed: {candidates} all hold .* Name the one that",
        ):
            find_columns(table(**columns), task)

    def test_a_split_that_lacks_a_column_of_the_training_split(self):
        """GLUE-like test splits under other names."""
        rows = DatasetDict(train=table(text=["x", "y"], label=[0, 1]), test=table(sentence=["x"], label=[0]))
        with pytest.raises(ValueError, match="data: the evaluation split has no column text"):
            prepare_splits(rows, TEXT)


def test_prepared_splits_keep_text_and_label_together():
    """Labels that are shuffled or cut otherwise than their rows."""
    rows = DatasetDict(
        train=table(text=[f"t{i}" for i in range(30)], label=[f"c{i % 3}" for i in range(30)]),
        test=table(text=["t0", "t1"], label=["c0", "c1"]),
    )
    splits = prepare_splits(rows, TEXT, train_split="train[:20]", max_train_rows=10, seed=3)
    assert len(splits.train) == 10
    assert splits.test is None
    assert list(splits.named()) == ["train", "evaluation"]
    for row in splits.train:
        assert splits.label_names[row["labels"]] == f"c{int(row['text'][1:]) % 3}"


@pytest.mark.parametrize("task", [TEXT, TOKENS])
def test_reordered_labels_name_the_same_classes(task):
    """Names in the new order over indices in the old one."""
    labels = ["b", None, "c", "a"]
    columns = {"text": ["w"] * 4, "label": labels}
    if task == TOKENS:
        columns = {"tokens": [["w"]] * 4, "tags": [[label] for label in labels]}
    splits = prepare_splits(DatasetDict(train=table(**columns), test=table(**columns)), task)
    assert splits.label_names == ("a", "b", "c")
    reordered = reorder_labels(splits, [2, 0, 1])
    assert reordered.label_names == ("c", "a", "b")
    for rows in reordered.named().values():
        indices = [label[0] if task == TOKENS else label for label in rows["labels"]]
        assert [None if i == -100 else reordered.label_names[i] for i in indices] == labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["a", "b"] * 3, pa.string_view()), ["a", "b"]),
        (pa.array(["a", "b"] * 3, pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"] * 3).dictionary_encode(), ["a", "b"]),
        (pa.array([Decimal("1.00"), Decimal("0.00")] * 3), ["0", "1"]),
        (pa.array([Decimal(1), Decimal(0)] * 3, pa.decimal256(40, 0)), ["0", "1"]),
        (pa.array([1, 0] * 3, pa.uint8()), ["0", "1"]),
    ],
)
def test_labels_and_texts_of_other_types_of_arrow_are_read(values, expected):
    """What Polars, Spark and databases write: no column of text, or labels that are none."""
    texts = pa.array([f"film {i}" for i in range(6)], pa.string_view())
    pq.write_table(pa.table({"text": texts, "label": values}), "x.parquet")
    splits = prepare_splits(load_rows(path="x.parquet"), "text-classification", eval_split="train[:2]")
    assert list(splits.label_names) == expected
    assert splits.train["text"][:] == [f"film {i}" for i in range(6)]
    assert set(splits.train["labels"]) == {0, 1}
