"""One README out of two: the one here and the one on the Hub, each of which somebody may have written in."""

import difflib
import hashlib
import json
import re
from typing import NamedTuple

from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK, RepoCard

from hf_distill.hub.readme import BEGIN, END, merge, our_section

# In our section: what the user's text was when it was the same here and on the Hub.
_MARK = re.compile(r"\n*<!-- hf_distill:text ([0-9a-f]{16}) -->")


def reconciled(here: str | None, there: str | None) -> str | None:
    """Return a README with what users have written in both.

    Where only one of the two has changed since they were last the same (see `marked`), it is that one, with all that
    was taken out of it. Where both have, or nobody knows, all lines of both are kept, those of the Hub first, and of
    the metadata the Hub's values stay.

    Raises:
        ValueError: the marks of our section, or the metadata, cannot be read in one of them.
    """
    if here is None or there is None:
        return there if here is None else here
    ours, theirs = _users_part(here), _users_part(there)
    if ours.digest == theirs.digest or theirs.is_empty:
        return here
    if ours.is_empty:
        return there
    if _mark_in(here) == theirs.digest:
        return here
    if _mark_in(here) == ours.digest:
        return there
    return _united(theirs, ours)


def marked(card: ModelCard, existing: str | None, *, is_shared: bool) -> ModelCard:
    """Return a card that says what the user's part of the README around it is, or was when it was last shared."""
    text = "" if existing is None else existing
    mark = _users_part(text).digest if is_shared else _mark_in(text)
    content = _MARK.sub("", card.content)
    return ModelCard(content if mark is None else f"{content.rstrip()}\n\n<!-- hf_distill:text {mark} -->\n")


class _UsersPart(NamedTuple):
    """What of a README is not ours: its metadata block, and the text before and after our section."""

    front: str
    before: str
    after: str

    @property
    def is_empty(self) -> bool:
        return not self.metadata and not (self.before + self.after).strip()

    @property
    def metadata(self) -> dict[str, object]:
        return dict(vars(RepoCard(self.front).data)) if self.front else {}

    @property
    def digest(self) -> str:
        words = (self.before + " " + self.after).split()
        text = json.dumps([self.metadata, words], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _users_part(readme: str) -> _UsersPart:
    readme = readme.removeprefix("\ufeff")
    section, head, front = our_section(readme), "", REGEX_YAML_BLOCK.search(readme)
    if front is not None:
        readme = readme[front.end() :]
        # Merged with an empty card, metadata lose what earlier ones of ours have brought.
        alone = REGEX_YAML_BLOCK.search(merge(front.group() + section, ModelCard("---\n{}\n---\n")))
        head = "" if alone is None else alone.group()
    before, _, after = (readme, "", "") if section == readme else readme.partition(section)
    return _UsersPart(head, before, after)


def _mark_in(readme: str) -> str | None:
    found = _MARK.search(our_section(readme)) if BEGIN in readme else None
    return None if found is None else found[1]


def _united(first: _UsersPart, second: _UsersPart) -> str:
    front = first.front if first.metadata else second.front
    if first.metadata and second.metadata:
        both = REGEX_YAML_BLOCK.search(merge(first.front, ModelCard(second.front)))
        front = front if both is None else both.group()
    before, after = _union(first.before, second.before), _union(first.after, second.after)
    blank = "" if before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
    return f"{front}{before}{blank}{BEGIN}\n{END}{after}"


def _union(first: str, second: str) -> str:
    """Return the lines of both texts, those that they share once."""
    left, right = first.splitlines(keepends=True), second.splitlines(keepends=True)
    if left and right and not left[-1].endswith(("\n", "\r")):
        left[-1] += "\n"
    matcher = difflib.SequenceMatcher(None, [line.rstrip() for line in left], [line.rstrip() for line in right], False)
    lines: list[str] = []
    for kind, start, stop, other_start, other_stop in matcher.get_opcodes():
        lines += left[start:stop] + ([] if kind == "equal" else right[other_start:other_stop])
    return "".join(lines)
