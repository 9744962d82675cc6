"""One term for each idea: the words that CONTRIBUTING.md does not want are nowhere else."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Imported until the next release by scripts of users, under the name of today's `shutdown_processes`.
OLD_MODULE = re.compile(r"\.parting\b|part_with_other_processes")


def unwanted_words() -> dict[str, re.Pattern[str]]:
    """Read the list after "Not used:"; `*` stands for the rest of a word."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"Not used: (.+?)\. `tests/test_words.py`", text, re.DOTALL)
    assert listed is not None, "CONTRIBUTING.md has no list of unwanted words"
    words = re.findall(r"`([^`]+)`", listed[1])
    # Names count too: their words are parted by underscores, which `\b` takes for letters.
    return {
        word: re.compile(rf"(?<![a-z]){word.replace('*', '[a-z]*').replace(' ', '[ _]')}(?![a-z])", re.IGNORECASE)
        for word in words
    }


def places() -> list[Path]:
    """List the library, the docs, the README and the recipes."""
    folders = [*ROOT.glob("hf_distill/**/*.py"), *ROOT.glob("hf_distill/**/*.md"), *ROOT.glob("docs/*.md")]
    return sorted([*folders, ROOT / "README.md", *ROOT.glob("recipes/**/*.yaml")])


def test_no_unwanted_word_stands_in_library_docs_or_readme() -> None:
    """Two words for one idea: a reader looks for a difference that is not there."""
    words = unwanted_words()
    assert len(words) >= 10
    assert len(places()) > 50
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in places()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word, pattern in words.items()
        if pattern.search(OLD_MODULE.sub("", line))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["def answers_of(rows)", "The teacher is let go.", "_rehearsed", "Licences of both"])
def test_the_search_finds_names_and_sentences(text: str) -> None:
    """A pattern that never matches passes on any text."""
    assert any(pattern.search(text) for pattern in unwanted_words().values())
