"""What is loaded from a Hub id or a folder: which commit, and whether the code that lies there may run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

_ADAPTER = "adapter_config.json"
# Where the Auto classes look for the classes of a model, a tokenizer and an image processor.
_NAMING_CLASSES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def named_source_options(source: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` for a source that a user has named; see `source_options`.

    Raises:
        ValueError: nothing is at that path, it is the folder of a run, or code of another repository would run.
    """
    check_folder(source)
    return source_options(source, revision, trust_remote_code)


def source_options(source: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that name the commit, and let its code run or not.

    Raises:
        ValueError: the code of another repository would run.
    """
    others = sorted(_others(source, revision)) if trust_remote_code else []
    if others:
        raise ValueError(
            f"it would run the code of {', '.join(others)}, and trust_remote_code is consent for that of {source} "
            "alone: load it with trust_remote_code=True in Python, save it by save_pretrained, which puts that code "
            "beside it, and name the folder"
        )
    return {"revision": revision or "main", "trust_remote_code": trust_remote_code}


def check_folder(source: str) -> None:
    """Refuse a path at which there is nothing, or the folder of a run, which has its models in it.

    Raises:
        ValueError: with what to name instead.
    """
    folder = Path(source).expanduser()
    models = [name for name in ("teacher", "student", "baseline") if (folder / name / "config.json").is_file()]
    if models and not (folder / "config.json").exists():
        raise ValueError(
            f"it is the folder of a run: name a model in it, {' or '.join(f'{source}/{m}' for m in models)}"
        )
    if not folder.exists() and (source.startswith(("/", "./", "../", "~")) or source.count("/") > 1):
        raise ValueError("no such folder")


def first_line(error: BaseException, *, consent: str = "trust_remote_code") -> str:
    """Return the first line of an error's text, for a message that quotes it; of code that may not run, the remedy."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    if not needs_consent(error):
        return line
    return f"{line.rstrip(' .')}. If you trust that code, set {consent} to true beside its name"


def needs_consent(error: BaseException) -> bool:
    """Tell whether something was not loaded because its code may not run."""
    return "`trust_remote_code=True`" in str(error)


def _others(source: str, revision: str | None) -> set[str]:
    """Name the other repositories whose code loading a source may run."""
    found: set[str] = set()
    for name in _NAMING_CLASSES:
        references = [text for text in _class_references(_content(source, name, revision)) if "--" in text]
        found |= {reference.split("--")[0] for reference in references}
    if not (Path(source) / "config.json").is_file():  # beside one, an adapter's base is not looked for elsewhere
        found |= {(_content(source, _ADAPTER, revision) or {}).get("base_model_name_or_path") or source}
    return found - {source}


def _content(source: str, name: str, revision: str | None) -> Any:
    """Return what a JSON file holds; None if it is not there, or cannot be had, which loading will tell."""
    try:
        file = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _class_references(values: Any, *, is_in_map: bool = False) -> Iterator[str]:
    if isinstance(values, str):
        yield from [values] if is_in_map else []
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _class_references(value, is_in_map=is_in_map or key == "auto_map")
    elif isinstance(values, list):
        for value in values:
            yield from _class_references(value, is_in_map=is_in_map)
