"""Changed copies of texts: what is changed, that it is the same each time, and that no label comes along."""

from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.data.augmented_texts import with_augmented

TEXTS = ["the film is a very good one", "dull", "a plot that was not so great and not so short"]


def rows() -> Dataset:
    features = Features({"text": Value("string"), "labels": ClassLabel(names=["bad", "good"])})
    return Dataset.from_dict({"text": TEXTS, "labels": [1, 0, 1]}, features=features)


def copies(train: Dataset, **chosen: float) -> Dataset:
    changes = {"copies": 2, "mask": 0.0, "swap": 0.0, "drop": 0.0, "mask_token": "[MASK]", "seed": 1, **chosen}
    return with_augmented(train, ("text",), **changes)  # type: ignore[arg-type]


def test_copies_have_no_label_and_the_rows_stay() -> None:
    """Labels of a text that is another one now would teach what is wrong."""
    found = copies(rows(), drop=0.5)
    assert found[:3] == rows()[:3]
    assert found["labels"] == [1, 0, 1, *[-100] * 6]
    assert found.features == rows().features


def test_what_is_changed_depends_on_seed_row_and_copy_alone() -> None:
    """Cached soft targets that are of other rows in the next run."""
    assert copies(rows(), mask=0.5)["text"] == copies(rows(), mask=0.5)["text"]
    assert copies(rows(), mask=0.5)["text"] != copies(rows(), mask=0.5, seed=2)["text"]
    assert copies(rows(), mask=0.5)["text"][3:6] != copies(rows(), mask=0.5)["text"][6:]
    backwards = copies(rows().select([2, 1, 0]), mask=0.5)
    assert backwards["text"][4] == copies(rows(), mask=0.5)["text"][4]


def test_each_change_is_the_one_that_was_asked_for() -> None:
    """Words that vanish where they should be masked, or a text of no words at all."""
    words = [text.split() for text in TEXTS]
    masked = [text.split() for text in copies(rows(), mask=1.0)["text"][3:6]]
    assert masked == [["[MASK]"] * len(each) for each in words]
    swapped = [text.split() for text in copies(rows(), swap=1.0)["text"][3:6]]
    assert swapped == [[*each[1:], each[0]] for each in words]
    dropped = copies(rows(), drop=1.0)["text"][3:6]
    assert dropped == [each[0] for each in words]
    some = [text.split() for text in copies(rows(), drop=0.3)["text"][3:6]]
    assert all({*kept} <= {*each} for kept, each in zip(some, words, strict=True))


def test_lists_of_words_stay_lists() -> None:
    """Words with tags: as many missing tags as words are left."""
    features = Features({"text": List(Value("string")), "labels": List(ClassLabel(names=["O", "X"]))})
    train = Dataset.from_dict(
        {"text": [each.split() for each in TEXTS], "labels": [[0] * len(each.split()) for each in TEXTS]},
        features=features,
    )
    found = copies(train, drop=0.5)
    assert [len(words) for words in found["text"]] == [len(tags) for tags in found["labels"]]
    assert all(tag == -100 for tags in found["labels"][3:] for tag in tags)
