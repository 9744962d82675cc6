"""A finished run, published on the Hub in one commit, however often it is tried."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from hf_distill.evaluation.curves import PLOT
from hf_distill.evaluation.results import Results
from hf_distill.hub.client import Hub
from hf_distill.hub.commit import Change, Published, found_or_made
from hf_distill.hub.destination import Destination, Found, in_full, refuse_foreign
from hf_distill.hub.files import ADAPTER, README, Outgoing, base_of_adapter, safetensors_header, unknown_base
from hf_distill.hub.portable import is_local
from hf_distill.hub.readme import merge, read_readme, text_around, users_licence, with_users_part
from hf_distill.hub.secrets import refuse_secrets
from hf_distill.runs.recipe.reading import to_yaml
from hf_distill.runs.run_card import RunCard, card_of_run, published, read_run

_WEIGHTS = ".safetensors"
# What `save_pretrained` of models and processors writes. Pickles (.bin, .pt) can run code where they are loaded, and
# hold this machine's paths.
_SUFFIXES = frozenset((".json", ".txt", ".md", ".jinja", ".py", ".model", ".spm", ".png", _WEIGHTS))

# What `from_pretrained` reads at the top of a repository: left over from another student, it would change this one.
_READ_BY_LOADING = (
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.*"),
    *("added_tokens.json", "merges.txt", "*.model", "training_curves.png"),
)


def publish(
    run: Path, to: Destination, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> Published:
    """Publish a finished run in one commit, so that no reader ever sees half a model.

    The run's folder is only read. Text of the user's in the repository's README.md stays, whatever it is; what is
    there already is not sent again, and if all of it is there nothing is done.

    Raises:
        ValueError: the run is not fit to go out, or (`HubError`) the Hub did not take it; what to do is in the message.
    """
    files = outgoing(run, to, token)
    hub = Hub(token, sleep).sign_in()
    to = in_full(to, hub)
    _refuse_secrets(files, run, to, hub.token)
    return _Push(hub, run, to, files).done()


def outgoing(run: Path, to: Destination, token: str | None = None) -> list[Outgoing]:
    """Return what of a run would go out into an empty repository; the Hub is not asked.

    Raises:
        ValueError: the run is not finished or its student cannot be loaded by others; or there are keys, paths or names
            of this machine in a file.
    """
    files = collect(run, to.repo_id)
    _refuse_secrets(files, run, to, token or os.environ.get("HF_TOKEN"))
    return files


def collect(run: Path, repo_id: str | None = None) -> list[Outgoing]:
    """Return what of a finished run goes out, README.md first, as it would be in an empty repository.

    Nothing is written, and of weights no more than the header is read.

    Raises:
        ValueError: the run is not finished, or the student is one that others could not load.
    """
    _refuse_unfinished(run)
    recipe, results = read_run(run)
    student = run / "student"
    files = {
        path.relative_to(student).as_posix(): path for path in sorted(student.rglob("*")) if _goes_out(student, path)
    }
    found = [Outgoing(name, path) for name, path in files.items() if name != README]
    _refuse_unloadable(student, found)
    try:
        content, made = readme(run, repo_id, own_readme(run))
    except ValueError as error:
        raise ValueError(f"{student}: {error}") from error
    if made.plot is not None and PLOT not in files:
        found.append(Outgoing(PLOT, made.plot))
    found += [
        Outgoing("recipe.yaml", to_yaml(published(recipe, results)).encode()),
        Outgoing("results.json", (run / "results.json").read_bytes()),
    ]
    return [Outgoing(README, content), *sorted(found, key=lambda file: file.path_in_repo)]


def readme(run: Path, repo_id: str | None, existing: str | None) -> tuple[bytes, RunCard]:
    """Return a README.md with the card of a run written into what is there already, and that card."""
    made = card_of_run(run, repo_id=repo_id, license=users_licence(existing))
    return merge(existing, made.card).encode(), made


def with_readme(files: list[Outgoing], content: bytes) -> list[Outgoing]:
    """Return the files with another README.md."""
    return [replace(file, content=content) if file.path_in_repo == README else file for file in files]


def own_readme(run: Path) -> str | None:
    """Return the README that lies beside the student, which may hold text of the user's."""
    return read_readme(run / "student" / README)


def start_of(there: str | None, own: str | None) -> str | None:
    """Return the README that a card is written into: the one on the Hub, with what only the run's own says.

    Text and metadata that somebody has set on the Hub stay.
    """
    if there is None or own is None:
        return own if there is None else there
    return with_users_part(there, own)


def own_text(text: str) -> str:
    """Return what a README says besides its metadata and our section."""
    return "".join(text_around(text)).strip()


def _refuse_unfinished(run: Path) -> None:
    if not run.is_dir():
        raise ValueError(f"{run}: there is no such folder; expected the output folder of `hf-distill train`")
    missing = [name for name in ("recipe.yaml", "results.json", "student") if not (run / name).exists()]
    if missing and (run.resolve().parent / "results.json").is_file():
        raise ValueError(f"{run} is a part of a run: name the run's folder, {run.resolve().parent}")
    if missing:
        raise ValueError(
            f"{run} holds no finished run, {', '.join(missing)} is missing: let `hf-distill train` end first"
        )


def _goes_out(student: Path, path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(student).parts)
    return path.suffix in _SUFFIXES and not is_hidden and path.is_file()


def _refuse_unloadable(student: Path, files: list[Outgoing]) -> None:
    """Refuse a student that a stranger's `from_pretrained` would not load, or not whole."""
    here = {file.path_in_repo: file for file in files}
    weights = [file for file in files if file.path_in_repo.endswith(_WEIGHTS)]
    if not weights:
        raise ValueError(
            f"{student} has no weights in safetensors: save the model again by `save_pretrained`; pickled weights "
            "(.bin) can run code where they are loaded, and are not published"
        )
    for file in weights:
        safetensors_header(file)
    for index in (file for file in files if file.path_in_repo.endswith(f"{_WEIGHTS}.index.json")):
        lost = sorted(set(json.loads(index.read())["weight_map"].values()) - set(here))
        if lost:
            raise ValueError(f"{student / index.path_in_repo} names {', '.join(lost)}, which is not there")
    if ADAPTER in here:
        base = base_of_adapter(here[ADAPTER])
        if not base or is_local(base):
            raise ValueError(f"{student / ADAPTER}: {unknown_base(base)}")
    elif "config.json" not in here:
        raise ValueError(f"{student / 'config.json'} is missing: let `hf-distill train` make the student again")


class _Push:
    """One push of one run."""

    def __init__(self, hub: Hub, run: Path, to: Destination, files: list[Outgoing]) -> None:
        self.hub = hub
        self.run, self.to, self.files = run, to, files
        self.remarks: list[str] = []
        self.objections: list[str] = []

    def done(self) -> Published:
        """Look what is there, and send what is not."""
        found = found_or_made(self.hub, self.to)
        refuse_foreign(self.to, found)
        self.files = with_readme(self.files, self._readme(found))
        change = Change(self.hub, self.to, found, self.files, self._left_over(found))
        published = change.settle(f"Publish {Results.read(self.run).recipe}, a student distilled with hf_distill")
        return replace(published, remarks=(*self.remarks, *published.remarks), objections=tuple(self.objections))

    def _readme(self, found: Found) -> bytes:
        """Write the card into the README that is there."""
        own = own_readme(self.run)
        try:
            existing = start_of(found.readme, own)
            if own and own_text(own) not in (existing or ""):
                self.remarks.append(
                    f"README.md of {self.to.repo_id} has text of its own, which was kept; that in {self.run} is another"
                )
            content, made = readme(self.run, self.to.repo_id, existing)
        except ValueError as error:
            raise ValueError(f"on the Hub, {self.to.repo_id}: {error}") from error
        self.objections = made.objections
        return content

    def _left_over(self, found: Found) -> list[str]:
        ours = {file.path_in_repo for file in self.files}
        at_the_top = [path for path in found.files if "/" not in path and path not in ours]
        return [path for path in at_the_top if any(fnmatch(path, name) for name in _READ_BY_LOADING)]


def _refuse_secrets(files: Sequence[Outgoing], run: Path, to: Destination, token: str | None) -> None:
    labels = Results.read(run).data.get("label_names") or []
    public = (to.repo_id.partition("/")[0], *map(str, labels))
    refuse_secrets(files, token=token, public=public, remedy=f"Take them out of {run} first")
