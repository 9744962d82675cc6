import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hf_distill

PACKAGE = Path(hf_distill.__file__).parent
LOWER = {"objective", "data", "models", "evaluation", "parting", "sampling"}  # use nothing of the package, or little

# What each part of the package may import of the others. A new part needs a line here; think where it stands.
MAY_USE: dict[str, set[str]] = {
    **{part: set() for part in LOWER},
    "models": {"data.pixels"},
    "config": {"objective"},
    "students": {"models"},
    "publishing": {"evaluation.results", "evaluation.report", "recipe", "schema"},
    "lineage": {"publishing.portable"},
    "environment": set(),
    "teachers": {"objective", "data", "models"},
    "checks": {"config", "data", "objective"},
    "taught": {"config", "checks", "data", "objective", "resuming", "teachers"},
    "answering": {"checks", "config", "data", "taught", "teachers"},
    "precomputed": {"answering", "data", "teachers"},
    "facts": {"config", "environment", "evaluation.results", "lineage", "publishing.trainer_card", "teachers"},
    "published": {"facts", "precomputed", "publishing"},
    "trainer": {"checks", "config", "objective", "published", "taught", "teachers"},
    "resuming": {"sampling"},
    "problems": {"config"},
    "schema": {"problems"},
    "conflicts": {"evaluation.measuring", "problems", "schema"},
    "recipe": {"conflicts", "problems", "schema"},
    "workspace": {"recipe", "schema", "teachers.cache_key"},
    "timing": {"workspace"},
    "plan": {"schema", "workspace", "models", "shared_targets", "students", "teachers"},
    "teacher_facts": {"publishing.ancestry", "schema", "workspace"},
    "shared_targets": {
        *("config", "data.identity", "lineage", "publishing.asking", "publishing.portable", "schema", "teacher_facts"),
        *("teachers.cache_key", "teachers.soft_targets", "teachers.target_form"),
    },
    "inputs": {"data", "models", "schema", "shared_targets", "teachers.own_inputs"},
    "settings": {"config", "problems", "schema"},
    "casting": {"config", "data", "inputs", "models", "schema", "settings", "shared_targets", "students", "teachers"},
    "staging": LOWER
    | {
        *("casting", "config", "inputs", "lineage", "schema", "settings", "shared_targets", "timing", "trainer"),
        *("teachers.quality", "workspace"),
    },
    "teacher_answers": {"casting", "config", "precomputed", "schema", "staging", "teacher_facts", "trainer"},
    "run": {"casting", "environment", "evaluation", "publishing", "schema", "staging", "teacher_answers"},
    "caching": {"publishing", "schema", "staging", "teacher_answers", "teacher_facts", "teachers"},
    "cli": {"recipe", "run"},  # and anything inside a command, see below
    "__main__": {"cli"},
    "__init__": set(),
}

# What may be done in one module only: calls by the name that is called, and imports.
CALLS_OF_ONE: dict[str, str] = {
    "print": "cli",
    "echo": "cli",
    "push_to_hub": "published",
    "create_repo": "publishing.committing",
    "create_branch": "publishing.committing",
    "create_commit": "publishing.committing",
    "upload_file": "publishing.committing",
    "upload_folder": "publishing.committing",
    "import_module": "__init__",
}
IMPORTS_OF_ONE: dict[str, str] = {"typer": "cli", "rich": "cli", "yaml": "recipe", "importlib": "__init__"}


def module_name(path: Path) -> str:
    """Name a file as an import does, without the package: `data.text`, `data`, and `__init__` for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.AST) -> Iterator[str]:
    """Name the modules that a statement imports: a name imported from a package may be a module of it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports of the package are absolute"
        for alias in node.names:
            if node.module == "hf_distill" and alias.name in hf_distill._HOMES:
                yield hf_distill._HOMES[alias.name]
            else:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("hf_distill.") in TREES else str(node.module)


def used_parts(tree: ast.AST) -> set[str]:
    names = (name for node in ast.walk(tree) for name in imported(node))
    return {name.removeprefix("hf_distill.") for name in names if name.startswith("hf_distill.")}


def is_in(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def without_functions(tree: ast.Module) -> ast.Module:
    kept = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return ast.Module(body=kept, type_ignores=[])


def without_type_checking(tree: ast.Module) -> ast.Module:
    kept = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    return ast.Module(body=kept, type_ignores=[])


# ---- The order of imports ----


def test_the_modules_are_found_and_their_imports_read() -> None:
    """Every test below passes on an empty set."""
    assert len(TREES) > 20
    assert {"__init__", "cli", "recipe", "trainer", "objective", "objective.losses", "teachers.frozen"} <= set(TREES)
    assert "objective.losses" in used_parts(TREES["trainer"])
    assert "config" in used_parts(TREES["problems"])  # inside a function
    assert used_parts(ast.parse("from hf_distill.evaluation import measuring, results")) == {
        "evaluation.measuring",
        "evaluation.results",
    }
    assert used_parts(ast.parse("from hf_distill import DistillationTrainer, __version__")) == {"trainer"}
    assert used_parts(ast.parse("def f():\n    import hf_distill.run")) == {"run"}


def test_the_table_names_every_part_and_no_other() -> None:
    """A new module that nothing holds, or a line about one that is gone."""
    assert {module.split(".")[0] for module in TREES} == set(MAY_USE)


def test_the_table_itself_runs_one_way() -> None:
    """Two parts that may use each other."""
    graph = {part: {used.split(".")[0] for used in parts} for part, parts in MAY_USE.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", TREES)
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    """A loss that reads a config, a student that knows its teacher: parts that cannot be used alone."""
    part = module.split(".")[0]
    tree = TREES[module]
    if part == "cli":
        tree = without_functions(tree)
    if part in ("__init__", "cli"):
        tree = without_type_checking(tree)
    wrong = {used for used in used_parts(tree) if not is_in(used, MAY_USE[part] | {part})}
    assert not wrong, f"hf_distill.{module} must not import {', '.join(sorted(wrong))}"


# ---- What only one module does ----


@pytest.mark.parametrize(("name", "home"), CALLS_OF_ONE.items())
def test_only_one_module_calls(name: str, home: str) -> None:
    """Output in the middle of a user's notebook; a push to the Hub that nobody asked for."""
    callers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }
    assert callers <= {home}


@pytest.mark.parametrize(("name", "home"), IMPORTS_OF_ONE.items())
def test_only_one_module_imports(name: str, home: str) -> None:
    """YAML read in a second place, with other rules for `3e-4` and `no`."""
    users = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if any(found.split(".")[0] == name for found in imported(node))
    }
    assert users == {home}


def test_nothing_is_written_to_standard_output_but_by_the_command_line() -> None:
    """`print` by another name."""
    writers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
    }
    assert writers <= {"cli"}


# ---- The public names ----


def test_importing_the_package_and_its_command_line_is_fast() -> None:
    """`hf-distill --help` that takes seconds, because torch is imported by the way."""
    program = "import hf_distill, hf_distill.cli, sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "hf_distill.cli" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "sklearn", "numpy"}


def test_the_three_lists_of_public_names_agree() -> None:
    """A name in `__all__` that does not resolve, or one that type checkers do not see."""
    names = list(hf_distill.__all__)
    assert names == sorted(names)
    assert set(names) == set(hf_distill._HOMES)
    block = next(
        node
        for node in TREES["__init__"].body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen_by_type_checkers = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen_by_type_checkers == hf_distill._HOMES


@pytest.mark.parametrize("name", hf_distill.__all__)
def test_a_public_name_resolves_to_what_its_home_defines(name: str) -> None:
    """A home that re-exports from elsewhere, or an error on first use."""
    found = getattr(hf_distill, name)
    assert found.__name__ == name
    assert found.__module__ == hf_distill._HOMES[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    """`hasattr` that raises a KeyError."""
    assert not hasattr(hf_distill, "Distiller")
