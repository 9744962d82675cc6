"""Put a card into a README that may be somebody's own: one marked section is ours, the rest is theirs."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK, RepoCard
from huggingface_hub.repocard_data import CardData

BEGIN = "<!-- hf_distill:begin -->"
END = "<!-- hf_distill:end -->"
# What of the metadata is ours: without this, what we wrote last time could not be told from what the user wrote.
_RECORD = re.compile(r"<!-- hf_distill:metadata (.*) -->")
_LISTS = ("base_model", "datasets", "language", "metrics", "tags")
_LICENSE = ("license", "license_name", "license_link")
_INDEX = "model-index"
Metadata = dict[str, Any]


def merge(existing: str | None, card: RepoCard) -> str:
    """Return a README with a card's section and metadata in it, and the text around them as it was.

    The section stands where its marks are, or else at the end. Of the metadata, what the user wrote wins: lists are
    united, theirs first, other values stay, and what an earlier card of ours wrote gives way to the new. To merge the
    same card again changes nothing.

    Raises:
        ValueError: the marks are not one pair, or the metadata cannot be read.
    """
    text = existing or ""
    mark, text = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    line_break = _line_break(text)
    front, body = _parts(text)
    theirs = _metadata(front)
    place = _section(body)
    ours_before = {} if place is None else _record(body[place])
    new: Metadata = card.data.to_dict()  # type: ignore[no-untyped-call]
    merged, ours = _united(theirs, new, ours_before)
    section = _lines(line_break, BEGIN, _recorded(ours), "", card.text.strip(), "", END)
    head = _front_matter(front, theirs, merged, line_break)
    if place is not None:
        return mark + head + body[: place.start] + section + body[place.stop :]
    blank = next(gap for gap in ("", line_break, 2 * line_break) if not body or (body + gap).endswith(2 * line_break))
    return mark + head + body + (blank or ("" if body else line_break)) + section + line_break


def combined(there: str | None, here: str | None) -> str | None:
    """Return the README on the Hub with what only the one here has: paragraphs, at its end, and metadata.

    Of two values of one key the Hub's stays, and lists are united.

    Raises:
        ValueError: as `merge` does, for either of them.
    """
    if there is None or here is None:
        return here if there is None else there
    mark, bare = ("\ufeff", there[1:]) if there.startswith("\ufeff") else ("", there)
    front, body = _parts(bare)
    theirs, place = _metadata(front), _section(body)
    record, line_break = {} if place is None else _record(body[place]), _line_break(there)
    merged = dict(theirs)
    for name, value in _users_metadata(here).items():
        if name in _LISTS:
            merged[name] = _united_list(theirs.get(name), value, [])[0]
        elif theirs.get(name) in (None, record.get(name)):
            merged[name] = value
    present = {_words(paragraph) for text in text_around(bare) for paragraph in _paragraphs(text)}
    missing = [each for text in text_around(here) for each in _paragraphs(text) if _words(each) not in present]
    if missing:
        added = (2 * line_break).join(each.strip().replace("\n", line_break) for each in missing) + line_break
        body = f"{body.rstrip()}{2 * line_break}{added}" if body.strip() else added
    return mark + _front_matter(front, theirs, merged, line_break) + body


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if part.strip()]


def _words(text: str) -> str:
    return " ".join(text.split())


def users_license(existing: str | None) -> str | None:
    """Return the license that a user has set in a README's metadata, None if there is none or it is our own entry.

    Raises:
        ValueError: as `merge` does.
    """
    front, body = _parts((existing or "").removeprefix("\ufeff"))
    place = _section(body)
    license = _metadata(front).get("license")
    ours = None if place is None else _record(body[place]).get("license")
    return None if license in (None, ours) else ", ".join(map(str, _listed(license)))


def text_around(readme: str) -> tuple[str, str]:
    """Return what a README says before and after our section, its metadata left out."""
    _, body = _parts(readme.removeprefix("\ufeff"))
    place = _section(body)
    return (body, "") if place is None else (body[: place.start], body[place.stop :])


def our_section(readme: str) -> str:
    """Return the text between the marks, or all of it where there are none.

    Raises:
        ValueError: the marks are not one pair.
    """
    _, body = _parts(readme.removeprefix("\ufeff"))
    place = _section(body)
    return body if place is None else body[place]


# ---- Parts of a README ----


def _parts(text: str) -> tuple[re.Match[str] | None, str]:
    """Return the metadata block, None if there is none, and what follows it."""
    front = REGEX_YAML_BLOCK.search(text)
    return front, text if front is None else text[front.end() :]


def _section(body: str) -> slice | None:
    """Return where our section is, marks included; None if there is none."""
    begins, ends = (
        [match.span() for match in re.finditer(rf"^ {{0,3}}{re.escape(mark)}(?=[ \t]*\r?$)", body, re.MULTILINE)]
        for mark in (BEGIN, END)
    )
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0][0] > ends[0][0]:
        raise ValueError(
            f"README.md: expected one line {BEGIN} and after it one line {END}, got {len(begins)} and {len(ends)}"
            f"{' in the other order' if len(begins) == len(ends) == 1 else ''}. Leave one pair, or delete these lines "
            "and what is between them: the section is then put at the end."
        )
    return slice(begins[0][0], ends[0][1])


def _metadata(front: re.Match[str] | None) -> Metadata:
    if front is None:
        return {}
    try:
        found = dict(vars(RepoCard(front.group()).data))
        # Norwegian, `no`, is false in YAML.
        return {**found, "language": "no"} if found.get("language") is False else found
    except Exception as error:  # PyYAML's own among them
        reason = " ".join(str(error).split()) or type(error).__name__
        if "should be a dict" in reason:
            reason = "it is no mapping"
        raise ValueError(
            f"README.md: the metadata between the first two lines of --- cannot be read ({reason}). Write them as "
            "key: value, or let the file begin with something else than ---."
        ) from error


def _line_break(text: str) -> str:
    return "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"


def _lines(line_break: str, *parts: str) -> str:
    return line_break.join(part.replace("\n", line_break) for part in parts)


# ---- What of the metadata is ours ----


def _record(section: str) -> Metadata:
    found = _RECORD.search(section)
    try:
        record = {} if found is None else json.loads(found[1])
    except ValueError:
        record = {}
    return record if isinstance(record, dict) else {}


def _recorded(ours: Metadata) -> str:
    text = json.dumps(ours, ensure_ascii=False).replace("--", "-\\u002d")  # would end the comment
    return f"<!-- hf_distill:metadata {text} -->"


def _users_metadata(readme: str) -> Metadata:
    """Return the metadata that are not our entries, but for the model-index."""
    front, body = _parts(readme.removeprefix("\ufeff"))
    place = _section(body)
    ours = {} if place is None else _record(body[place])
    found: Metadata = {}
    for name, value in _metadata(front).items():
        if name in _LISTS:
            items = [item for item in _listed(value) if item not in _listed(ours.get(name))]
            found |= {name: items} if items else {}
        elif name != _INDEX and value is not None and value != ours.get(name):
            found[name] = value
    return found


def _united(theirs: Metadata, new: Metadata, before: Metadata) -> tuple[Metadata, Metadata]:
    """Return the united metadata, and what of them is ours."""
    merged, ours = dict(theirs), Metadata()
    license = theirs.get("license")
    if license is not None and license != before.get("license"):
        new = {name: value for name, value in new.items() if name not in _LICENSE}
    for name in dict.fromkeys([*before, *new]):
        value: Any
        own: Any
        if name == _INDEX:
            value, own = _united_index(theirs.get(name), new.get(name), before.get(name) or {})
        elif name in _LISTS:
            value, own = _united_list(theirs.get(name), new.get(name), _listed(before.get(name)))
        else:
            is_theirs = theirs.get(name) is not None and theirs.get(name) != before.get(name)
            value, own = (theirs[name], None) if is_theirs else (new.get(name), new.get(name))
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
        if own:
            ours[name] = own
    return merged, ours


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _united_list(theirs: Any, new: Any, before: list[Any]) -> tuple[Any, list[Any]]:
    had, wanted = _listed(theirs), _listed(new)
    kept = [item for item in had if item not in before or item in wanted]
    united = kept + [item for item in wanted if item not in kept]
    ours = [item for item in wanted if item not in had or item in before]
    if united == had and theirs is not None:
        return theirs, ours
    is_one = len(united) == 1 and not isinstance(new if theirs is None else theirs, list)
    return (united[0] if is_one else united or None), ours


def _united_index(theirs: Any, new: Any, before: Mapping[str, Any]) -> tuple[Any, Metadata]:
    """Unite the results of models: theirs without those that we wrote before, and then ours."""
    try:
        models = []
        for model in theirs or []:
            results = []
            for result in model["results"]:
                kept = [m for m in result["metrics"] if _digest(result, m) not in before.get("metrics", [])]
                results += [{**result, "metrics": kept}] if kept or not result["metrics"] else []
            if results or model.get("name") != before.get("name"):
                models.append({**model, "results": results})
        present = {_digest(result, m) for model in models for result in model["results"] for m in result["metrics"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            "README.md: model-index is not a list of models with results with metrics: mend it or take it out"
        ) from error
    if not new:
        return models or None, {}
    (model,) = new
    own: list[str] = []
    results = []
    for result in model["results"]:
        missing = [m for m in result["metrics"] if _digest(result, m) not in present]
        own += [_digest(result, m) for m in missing]
        results += [{**result, "metrics": missing}] if missing else []
    if models:
        name, models[0] = None, {**models[0], "results": [*models[0]["results"], *results]}
    else:
        name, models = model["name"], [{**model, "results": results}]
    return models, {"name": name, "metrics": own}


def _digest(result: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Return a short mark of one result, made from what the Hub's forms do not add to or rename."""
    data = result["dataset"]
    info = [result["task"].get("type"), *(data.get(key) for key in ("type", "config", "split", "revision"))]
    text = json.dumps([*info, metric.get("type"), metric.get("value")], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _front_matter(front: re.Match[str] | None, theirs: Metadata, merged: Metadata, line_break: str) -> str:
    if merged == theirs:
        return "" if front is None else front.group()
    return _lines(line_break, "---\n" + _dumped(merged) + "---\n")


def _dumped(values: Metadata) -> str:
    return f"{CardData(**values).to_yaml()}\n" if values else ""


def read_readme(readme: Path) -> str | None:
    """Return a README's text with its line endings and byte order mark; None if there is none.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return readme.read_bytes().decode() if readme.is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{readme} is not UTF-8 text: save it as such, or move it away") from error


def license_in(readme: Path) -> str | None:
    """Return the license that the user has set in a README's metadata, which the card is then about; else None."""
    return users_license(read_readme(readme))
