import pytest
from datasets import Dataset

from hf_distill.data.unlabelled import with_unlabelled

TRAIN = Dataset.from_dict({"text": ["a", "b"], "labels": [0, 1], "more": [1, 2]})


def test_labels_of_the_other_source_are_not_taken() -> None:
    """Labels of another task would be learned as if they were this one's."""
    rows = with_unlabelled(TRAIN, Dataset.from_dict({"text": ["c"], "labels": [1], "x": [3]}), ("text",))
    assert rows["text"][:] == ["a", "b", "c"]
    assert rows["labels"][:] == [0, 1, -100]


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"sentence": ["c"]}, "has no column text, only sentence"), ({"text": [["c"]]}, "in the training data")],
)
def test_a_source_without_the_inputs_is_refused(columns: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_unlabelled(TRAIN, Dataset.from_dict(columns), ("text",))
