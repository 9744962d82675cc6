"""What the licenses of those that a student learnt from say to its own."""

import re
from collections.abc import Mapping
from typing import Any

from hf_distill.hub.portable import last_name

# Hub identifiers of licenses that ask for no more than their notice, or for nothing.
_PERMISSIVE = re.compile(
    r"apache-2\.0|mit|bsd(-.+)?|isc|zlib|ncsa|postgresql|bsl-1\.0|afl-3\.0|ecl-2\.0|artistic-2\.0|ms-pl|unlicense|wtfpl"
    r"|cc0-1\.0|pddl|cc-by-\d\.\d|cdla-permissive-\d\.\d|odc-by|etalab-2\.0|c-uda|openmdw.*"
)
_NO_DERIVATIVES = re.compile(r"cc-by-(nc-)?nd-.+")
_NON_COMMERCIAL = re.compile(r"cc-by-nc-.+")
_SHARE_ALIKE = re.compile(r"(a|l)?gpl(-.+)?|gfdl|cc-by-(nc-)?sa-.+|osl-.+|eupl-.+")


def license_conflict(teacher_license: str | None, student_license: str | None) -> str | None:
    """Say in one line what a teacher's license forbids a student, or binds it to; None: nothing that is known.

    It is a reading of names, not legal advice: whether a distilled model derives from its teacher is for the license
    and the law to say, so the line says what to look at.
    """
    license = (teacher_license or "unknown").lower()
    own = "no license yet" if student_license is None else student_license.lower()
    if license == "unknown":
        return "its license is not known: find out what it allows before you publish"
    if _NO_DERIVATIVES.fullmatch(license):
        return f"{license} does not allow adapted material to be shared, which a model distilled from it may be"
    if _NON_COMMERCIAL.fullmatch(license) and not _NON_COMMERCIAL.fullmatch(own):
        return f"{license} does not allow commercial use, and the student's license ({own}) does not say so"
    if _SHARE_ALIKE.fullmatch(license) and own != license:
        return f"{license} asks that what is derived is shared under the same license, and the student has {own}"
    if any(kind.fullmatch(license) for kind in (_PERMISSIVE, _NON_COMMERCIAL, _SHARE_ALIKE)):
        return None
    return f"its license ({license}) has terms of its own, which may bind what is made with it: read them first"


def student_license(recipe: Mapping[str, Any], lineage: Mapping[str, Any], given: str | None = None) -> dict[str, str]:
    """Return the license of a student, as the fields of a model card's metadata; empty if there is none to state.

    It is what was given; else that of the weights that it starts from; and else, for a student that starts from no
    weights, that of its first teacher.
    """
    if given is not None:
        return {"license": given}
    origin = lineage.get("student") or {}
    if recipe["student"].get("config") is not None:
        origin = next(iter(lineage.get("teachers", [])), {})
    names = ("license", "license_name", "license_link")
    return {name: origin[name] for name in names if origin.get(name) not in (None, "unknown")}


def _named(member: Mapping[str, Any]) -> str | None:
    """Return what a teacher is called that is known by its soft targets alone; None for one that started anew."""
    words = member.get("words")
    return None if words is None or words.startswith("a `") else str(words)


def license_conflicts(recipe: Mapping[str, Any], lineage: Mapping[str, Any], license: str | None) -> list[str]:
    """Return a line for each model whose license has something to say to the student's, teachers first."""
    teachers = recipe["teacher"] if isinstance(recipe["teacher"], list) else [recipe["teacher"]]
    stages = recipe.get("stages", [])
    models: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("teacher", {**section, "model": section.get("model") or _named(member)}, member)
        for section, origin in zip(teachers, lineage.get("teachers", []), strict=False)
        for member in origin.get("members", [origin])
    ]
    models += [
        *(("stage", *pair) for pair in zip(stages, lineage.get("stages", []), strict=False)),
        ("student", recipe["student"], lineage.get("student", {})),
    ]
    lines: dict[str, str] = {}
    for role, section, origin in models:
        if section.get("model") is None or not lineage:
            continue
        name = origin.get("model") or last_name(section["model"].strip("`"))
        said = license_conflict(origin.get("license"), license)
        if said is not None and name not in lines:
            lines[name] = f"{role} `{name}`: {said}"
    return list(lines.values())
