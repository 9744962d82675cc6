"""What must not go out: keys, folders of this machine, its user's name."""

import contextlib
import getpass
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from hf_distill.hub.card.parts import TEMPLATE
from hf_distill.hub.destination import SHOWN
from hf_distill.hub.files import WEIGHTS, Outgoing, is_prose, metadata_of_weights

_KEYS = {
    "a Hugging Face token": r"\b(?:hf_(?:oauth_)?|api_org_)[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "an API key": r"\bsk-(?=[\w-]*\d)[\w-]{20,}|\bAIza[\w-]{35}|\bxox[abeprs]-[\w-]{10,}|\bglpat-[\w-]{20,}",
    "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password": r"\w+://[^\s/:@\"']+:[^\s/@\"']+@"
    r"|(?i:api_?key|secret(?:_access)?_?key|access_token|passw(?:or)?d)\b[\"']?\s*[=:]\s*[\"']?(?=[\w/+-]*\d)[\w/+-]{16,}",
}
_URL = re.compile(r"\bhttps?://\S+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")


def check_secrets(
    files: Iterable[Outgoing],
    *,
    token: str | None = None,
    folders: Iterable[Path] = (),
    public: Collection[str] = (),
    users_text: Iterable[Outgoing] = (),
    remedy: str = "Take them out first",
) -> None:
    """Refuse to send files that hold secrets.

    `folders` are found besides the home and the working directory; words in `public`, such as labels, may be in the
    files though the user is called so; `users_text`, which somebody has written for others, is searched for keys alone.

    Raises:
        ValueError: some do; it names file, line and kind, and never the secret itself.
    """
    found = list(_found(files, token, _of_this_machine(folders, public)))
    found += _found(users_text, token, {})
    if found:
        shown = list(dict.fromkeys(found))
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        raise ValueError(f"push stopped, secrets found: {'; '.join(shown[:SHOWN])}{more}. {remedy}")


def _of_this_machine(folders: Iterable[Path], public: Collection[str]) -> dict[str, re.Pattern[str]]:
    """Return what tells of this machine, by its kind."""
    paths = {str(folder.expanduser().absolute()) for folder in (Path.home(), Path.cwd(), *folders)} - {"/"}
    either = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    patterns = {"a folder of this machine": re.compile(rf"(?:{either})(?![\w-])")} if paths else {}
    names = {Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):  # an account without a name, as in some containers
        names.add(getpass.getuser())
    # A name that is a word of each card, such as student, gives nothing away.
    names -= {*public, "root", *re.findall(r"\w+", TEMPLATE.read_text(encoding="utf-8"))}
    names = {name for name in names if len(name) >= 3}
    if names:
        either = "|".join(map(re.escape, sorted(names)))
        # The first part of `name/repo` is public; that of a path is not.
        patterns["the name of this machine's user"] = re.compile(
            rf"(?<![\w/\\~@])(?:{either})(?![\w])(?!/\w)|(?<=[/\\~@])(?:{either})(?!\w)"
        )
    return patterns


def _found(files: Iterable[Outgoing], token: str | None, of_machine: dict[str, re.Pattern[str]]) -> Iterator[str]:
    for file in files:
        for number, line in _lines(file):
            kinds = [kind for kind, pattern in _KEYS.items() if re.search(pattern, line)]
            kinds += ["the token in use"] if token and token in line else []
            if is_prose(file.path_in_repo):  # any word, and any piece of a path, is an entry of some vocabulary
                rest = _URL.sub(" ", line)
                kinds += [kind for kind, pattern in of_machine.items() if pattern.search(rest)]
            where = f"line {number}" if number else "in its header"
            yield from (f"{file.path_in_repo}, {where}: {kind}" for kind in kinds)


def _lines(file: Outgoing) -> Iterator[tuple[int, str]]:
    if PurePosixPath(file.path_in_repo).suffix == WEIGHTS:
        yield 0, json.dumps(metadata_of_weights(file), ensure_ascii=False)
        return
    text = file.read().decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, _ESCAPE.sub(_unescaped, line) if file.path_in_repo.endswith(".json") else line


def _unescaped(escape: re.Match[str]) -> str:
    """Return the character that JSON writes as an escape, a space in place of a line break and its like."""
    if escape[1]:
        return chr(int(escape[1], 16))
    return " " if escape[2] in "nrtbf" else str(escape[2])
