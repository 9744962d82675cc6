"""What must not go out with a student: keys, this machine's paths, its user's name."""

import contextlib
import getpass
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hf_distill.hub.destination import SHOWN
from hf_distill.hub.files import Outgoing, safetensors_header

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
# Where people's files are, on this machine or another.
_ROOTS = (
    r"home|Users|root|mnt|media|Volumes|scratch|tmp|data\d*|private/(?:var|tmp)|var/folders|workspace|content|kaggle|gpfs"
    r"|lustre|nfs"
)
_PATH = re.compile(
    rf"(?:(?<![\w/.<~])|(?<=file://))/(?:{_ROOTS})/[\w.+@-]"
    r"|(?<![\w/])[A-Za-z]:[\\/](?:Users|home)[\\/]|(?<!\w)[A-Za-z]:\\\w"
)
_ANY_PATH = re.compile(r"(?<![\w/.<~])/(?:[\w.+@-]+/)+[\w.+@-]+")
# A whole value of a setting; of three parts or more, since labels may be such as /m/0dgw9r.
_QUOTED_PATH = re.compile(r"""(["'])/(?:[\w.+@-]+/){2,}[\w.+@-]+/?\1""")
_OF_ANY_MACHINE = ("/usr/", "/bin/", "/dev/", "/etc/", "/lib/", "/proc/", "/sys/", "/opt/conda/")
_URL = re.compile(r"\bhttps?://\S+")
# Any word, and any piece of a path, is an entry of some vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_BINARY = (".png", ".model", ".spm")
# Names of accounts that are nobody's own, and that are words of cards and settings.
_COMMON_NAMES = frozenset(
    """
    admin administrator ubuntu debian centos fedora root user users runner test guest docker jovyan vscode
    codespace colab kaggle app home work worker workspace data model models student teacher train trainer
    training build builder github gitlab jenkins azureuser ec2-user sagemaker-user opc vagrant node nobody
    default hub huggingface image text label labels main max mean seed none
    """.split()  # noqa: SIM905
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))")


@dataclass(frozen=True)
class Finding:
    """A place in a file, and what kind of secret is there; never the secret itself.

    Attributes:
        file: its path in the repository.
        line: from 1; 0 for the header of a file of weights.
        kind: in words.
    """

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}, {f'line {self.line}' if self.line else 'in its header'}: {self.kind}"


def scan(
    files: Iterable[Outgoing], *, token: str | None = None, public: Collection[str] = (), only_keys: bool = False
) -> list[Finding]:
    """Look through all text that goes out, the header of the weights included."""
    names = machine_names() - set(public)
    name = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(names)))})(?!\w)") if names else None
    findings: list[Finding] = []
    for file in files:
        is_prose = PurePosixPath(file.path_in_repo).name not in _VOCABULARIES and not file.path_in_repo.endswith(
            _BINARY
        )
        for number, line in _lines(file):
            kinds = [kind for kind, pattern in _KEYS.items() if re.search(pattern, line)]
            if token and token in line:
                kinds.append("the token in use")
            if is_prose and not only_keys:
                kinds += _of_this_machine(line, name)
            findings += [Finding(file.path_in_repo, number, kind) for kind in kinds]
    return findings


def refuse_secrets(files: Iterable[Outgoing], *, token: str | None, public: Iterable[str], remedy: str) -> None:
    """Refuse to send files that hold secrets.

    Raises:
        ValueError: some do; it says which, and where.
    """
    refuse(scan(files, token=token, public={word for name in public for word in name.split()}), remedy)


def refuse(findings: Iterable[Finding], remedy: str) -> None:
    """Raise ValueError if anything was found, with the first places of it and a sentence that says what to do."""
    found = list(dict.fromkeys(map(str, findings)))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(f"nothing was sent, these must not be published: {'; '.join(found[:SHOWN])}{more}. {remedy}")


def machine_names() -> set[str]:
    """Return the names by which this machine knows its user, those aside that are nobody's own."""
    names = {Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):  # an account without a name, as in some containers
        names.add(getpass.getuser())
    return {name for name in names if len(name) >= 3 and name.lower() not in _COMMON_NAMES}


def _lines(file: Outgoing) -> Iterator[tuple[int, str]]:
    if file.path_in_repo.endswith(".safetensors"):
        yield 0, json.dumps(safetensors_header(file).get("__metadata__", {}), ensure_ascii=False)
        return
    text = file.read().decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        yield number, _ESCAPE.sub(_unescaped, line) if file.path_in_repo.endswith(".json") else line


def _unescaped(escape: re.Match[str]) -> str:
    """Return the character that JSON writes as an escape, a space in place of a line break and its like."""
    if escape[1]:
        return chr(int(escape[1], 16))
    return " " if escape[2] in "nrtbf" else str(escape[2])


def _of_this_machine(line: str, name: re.Pattern[str] | None) -> list[str]:
    line = _URL.sub(" ", line)
    kinds = []
    if (
        _PATH.search(line)
        or _QUOTED_PATH.search(line)
        or any(_exists(found.rstrip(".")) for found in _ANY_PATH.findall(line))
    ):
        kinds.append("a path of a machine")
    if name is not None and any(not _is_hub_id(line, found) for found in name.finditer(line)):
        kinds.append("the name of this machine's user")
    return kinds


def _exists(path: str) -> bool:
    try:
        return not path.startswith(_OF_ANY_MACHINE) and Path(path).exists()
    except OSError:  # may not be looked at, or too long
        return False


def _is_hub_id(line: str, found: re.Match[str]) -> bool:
    """Tell whether a name is the first part of `name/repo`: such ids are public, and are no path."""
    before, after = line[: found.start()][-1:], line[found.end() :][:2]
    return before not in ("/", "\\", "~", "@") and re.fullmatch(r"/\w", after) is not None
