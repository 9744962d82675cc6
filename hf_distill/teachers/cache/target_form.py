"""Whether soft targets, which may come from anywhere, are made as ours are."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hf_distill.teachers.cache.key import ABOUT, KEY_FILE
from hf_distill.teachers.cache.store import Form, SoftTargets

_NEEDED = ("columns", "labels", "level", "logits", "student_processor", "teachers")
_LEVELS = ("rows", "tokens")


def check_key_form(key: Mapping[str, Any], where: str, remedy: str) -> None:
    """Refuse a key that says what ours never does.

    Raises:
        ValueError: the message says what is wrong.
    """
    fault = next(_faults_of_key(key), None)
    if fault is not None:
        raise ValueError(f"{where}: {KEY_FILE} was not written by hf-distill: {fault}; {remedy}")


def check_targets(targets: SoftTargets, where: str, remedy: str) -> None:
    """Refuse soft targets that are not what their key, whose form is right, says of them.

    Raises:
        ValueError: the message says what is wrong; or there are none.
    """
    if not len(targets):
        raise ValueError(f"{where} has a {KEY_FILE}, and no soft targets beside it; {remedy}")
    fault = next((fault for form in targets.forms for fault in _faults_of_form(form, targets.key)), None)
    if fault is not None:
        raise ValueError(f"{where}: {KEY_FILE} is not that of the soft targets beside it: {fault}; {remedy}")


# ---- The key ----


def _faults_of_key(key: Mapping[str, Any]) -> Iterator[str]:
    lost = [name for name in _NEEDED if name not in key]
    if lost:
        yield f"it does not say what {', '.join(lost)} were"
        return
    labels, logits, about = key["labels"], key["logits"], key.get(ABOUT, {})
    named = about.get("teachers", []) if isinstance(about, dict) else None
    if not _are(str, key["columns"]):
        yield _fault("columns", key["columns"], "the names of one or more columns")
    if labels is not None and not _are(str, labels):
        yield _fault("labels", labels, "the names of the labels, or null")
    if key["level"] not in _LEVELS:
        yield _fault("level", key["level"], " or ".join(_LEVELS))
    if not isinstance(logits, dict) or not isinstance(logits.get("dtype"), str):
        yield _fault("logits", logits, "dtype and top_k")
    elif not (logits.get("top_k") is None or (_is_index(logits["top_k"]) and logits["top_k"] > 0)):
        yield _fault("logits.top_k", logits["top_k"], "a whole number > 0, or null")
    if not isinstance(key["student_processor"], dict | None):
        yield _fault("student_processor", key["student_processor"], "its settings, or null")
    if key.get("teacher_columns") is not None and not _are(str, key["teacher_columns"]):
        yield _fault("teacher_columns", key["teacher_columns"], "the names of one or more columns, or null")
    if not isinstance(named, list) or not all(isinstance(each, dict) for each in named):
        yield _fault(ABOUT, about, "the names of the teachers and versions")
    yield from _faults_of_teachers(key["teachers"], labels)


def _faults_of_teachers(teachers: Any, labels: list[str] | None) -> Iterator[str]:
    if not _are(dict, teachers):
        yield _fault("teachers", teachers, "an entry for each of one or more teachers")
        return
    for place, teacher in enumerate(teachers):
        name, specialist = f"teachers.{place}", teacher.get("specialist")
        if not isinstance(teacher.get("weights", teacher.get("function")), str):
            yield _fault(name, teacher, "the digest of its weights, or the fingerprint of its function")
        if not isinstance(teacher.get("processor"), dict | None):
            yield _fault(f"{name}.processor", teacher["processor"], "its settings, or null")
        if specialist is None:
            if place and teachers[place - 1].get("specialist") is not None:
                yield f"{name} comes after a specialist and is none, expected those of all labels first"
        elif place == 0:
            yield f"{name} is a specialist, expected one of all labels first"
        else:
            yield from _faults_of_specialist(f"{name}.specialist", specialist, labels)


def _faults_of_specialist(name: str, specialist: Any, labels: list[str] | None) -> Iterator[str]:
    if not isinstance(specialist, dict):
        yield _fault(name, specialist, "classes and oversampling, or null")
        return
    classes, oversampling = specialist.get("classes"), specialist.get("oversampling")
    num_labels = len(labels or [])
    is_known = _are(int, classes) and all(_is_index(each) and 0 <= each < num_labels for each in classes or [])
    if not is_known or len(set(classes or [])) != len(classes or []):
        yield _fault(f"{name}.classes", classes, f"one or more different indices of the {num_labels} labels")
    is_number = isinstance(oversampling, int | float) and not isinstance(oversampling, bool)
    if not is_number or not 0 < (oversampling or 0) < math.inf:
        yield _fault(f"{name}.oversampling", oversampling, "a finite number > 0")


# ---- What is beside it ----


def _faults_of_form(form: Form, key: Mapping[str, Any]) -> Iterator[str]:
    teachers, labels, top_k = key["teachers"], key["labels"], key["logits"].get("top_k")
    if len(form.widths) != len(teachers):
        yield f"it says that they are of {len(teachers)} teachers, and they are of {len(form.widths)}"
        return
    level = _LEVELS[form.is_token_level]
    if level != key["level"]:
        yield f"it says that they are of {key['level']}, and they are of {level}"
    if set(form.dtypes) != {key["logits"]["dtype"]}:
        yield f"it says that they are {key['logits']['dtype']}, and they are {', '.join(sorted(set(form.dtypes)))}"
    num_labels = form.widths[0] if labels is None else len(labels)
    for place, (teacher, width, num_kept) in enumerate(zip(teachers, form.widths, form.num_kept, strict=True)):
        specialist = teacher.get("specialist")
        expected = num_labels if specialist is None else len(specialist["classes"]) + 1
        if width != expected:
            yield f"it says that teacher {place + 1} has {expected} logits, and it has {width}"
        wanted = None if top_k is None or top_k >= width - 1 else top_k
        if num_kept != wanted:
            words = ["all logits" if count is None else f"the {count} largest" for count in (wanted, num_kept)]
            yield f"it says that {words[0]} of teacher {place + 1} are kept, and {words[1]} are"


def _fault(name: str, value: Any, expected: str) -> str:
    text = json.dumps(value)
    return f"{name} is {text if len(text) <= 60 else f'{text[:60]}...'}, expected {expected}"


def _are(of: type, values: Any) -> bool:
    """Tell whether something is a list of a type that is not empty."""
    return isinstance(values, list) and bool(values) and all(isinstance(each, of) for each in values)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
