"""The checks of a card's metadata that the Hub makes before it takes a README.md."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

# https://huggingface.co/docs/hub/repositories-licenses
LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma unknown other"
)
PIPELINES = (
    "text-classification token-classification question-answering fill-mask text-generation summarization translation "
    "feature-extraction sentence-similarity zero-shot-classification image-classification object-detection "
    "image-segmentation zero-shot-image-classification image-feature-extraction audio-classification "
    "automatic-speech-recognition text-to-image image-to-text tabular-classification tabular-regression other"
)
_FRONT_MATTER = re.compile(r"^\ufeff?\s*---[^\S\r\n]*\r?\n((?:.*?\r?\n)??)---[^\S\r\n]*(?:\r?\n|$)", re.DOTALL)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FORMS = {"base_model": _ID, "datasets": _ID, "language": re.compile(r"[a-z]{2,3}(-.+)?|code|multilingual")}


def front_matter(text: str) -> Any:
    """Return the metadata of a card, None where there are none.

    Raises:
        yaml.YAMLError: if they cannot be read.
    """
    match = _FRONT_MATTER.match(text)
    return yaml.safe_load(match[1]) if match else None


def problems(text: str) -> tuple[list[str], list[str]]:
    """Return the errors in a card's metadata, and the warnings."""
    try:
        data = front_matter(text)
    except yaml.YAMLError as error:
        return [f"Invalid YAML in README.md: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML metadata must be an object"], []
    pipeline = data.get("pipeline_tag")
    warnings = (
        [f'The pipeline tag "{pipeline}" is not in the official list'] if _other(pipeline, PIPELINES.split()) else []
    )
    return list(_errors(data)), warnings


def _other(value: Any, known: list[str]) -> bool:
    return value is not None and value not in known


def _errors(data: dict[str, Any]) -> Iterator[str]:
    if any(_other(license, LICENCES.split()) for license in _as_list(data.get("license"))):
        yield f'"license" must be one of [{", ".join(LICENCES.split())}, array]'
    for key in ("tags", "datasets", "metrics", "language", "base_model"):
        values = _as_list(data.get(key))
        yield from (f'"{key}[{i}]" must be a string' for i, value in enumerate(values) if not isinstance(value, str))
        for value in values:
            if isinstance(value, str) and key in _FORMS and not _FORMS[key].fullmatch(value):
                yield f'"{key}" with value "{value}" is not valid.'
    for key in ("tags", "widget"):
        if data.get(key) is not None and not isinstance(data[key], list):
            yield f'"{key}" must be an array'
    yield from _errors_in_index(data.get("model-index"))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _errors_in_index(index: Any) -> Iterator[str]:
    if index is None:
        return
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        yield from _missing(model, place, "name", "results")
        for j, result in enumerate(_items(model, "results")):
            at = f"{place}.results[{j}]"
            yield from _missing(result, at, "task", "dataset", "metrics")
            yield from _missing(_item(result, "task"), f"{at}.task", "type")
            dataset = _item(result, "dataset")
            yield from _missing(dataset, f"{at}.dataset", "type", "name")
            for key in ("type", "name", "config", "split", "revision"):
                if isinstance(dataset, dict) and not isinstance(dataset.get(key, ""), str):
                    yield f'"{at}.dataset.{key}" must be a string'
            for k, metric in enumerate(_items(result, "metrics")):
                yield from _missing(metric, f"{at}.metrics[{k}]", "type", "value")


def _missing(item: Any, place: str, *keys: str) -> Iterator[str]:
    if item is not None and not isinstance(item, dict):
        yield f'"{place}" must be of type object'
    elif item is not None:
        yield from (f'"{place}.{key}" is required' for key in keys if item.get(key) is None)


def _item(parent: Any, key: str) -> Any:
    return parent.get(key) if isinstance(parent, dict) else None


def _items(parent: Any, key: str) -> list[Any]:
    value = _item(parent, key)
    return value if isinstance(value, list) else []
