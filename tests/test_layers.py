import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_distill

PACKAGE = Path(hf_distill.__file__).parent
# The rooms of the house, from the top: a module imports from its own and from those below.
ROOMS = ["__main__", "cli", "runs", "training", "hub", "teachers", "evaluation", "data", "models"]

CLI = {
    f"cli.{name}"
    for name in ("compare", "console", "data", "export", "main", "progress", "publish", "recipes", "search", "train")
}

# What may be done in one module only: calls by the name that is called, and imports.
CALLS_OF_ONE: dict[str, set[str]] = {
    "print": CLI,
    "echo": CLI,
    "push_to_hub": {"training.trainer"},
    "create_repo": {"hub.commit"},
    "create_branch": {"hub.commit"},
    "create_commit": {"hub.commit"},
    "upload_file": {"hub.commit"},
    "upload_folder": {"hub.commit"},
    "import_module": {"__init__"},
}
IMPORTS_OF_ONE: dict[str, set[str]] = {
    "typer": CLI,
    "rich": {"cli.console", "cli.progress"},
    "yaml": {"hub.card.parts", "runs.recipe.reading"},
    "importlib": {"__init__"},
}


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


# ---- The order of imports ----


def test_the_modules_are_found_and_their_imports_read() -> None:
    """Every test below passes on an empty set."""
    assert len(TREES) > 20
    assert {"__init__", "cli.main", "runs.recipe.reading", "training.trainer", "teachers.model"} <= set(TREES)
    assert "training.losses.soft" in used_parts(TREES["training.objective"])
    assert "training.config" in used_parts(TREES["runs.recipe.validation"])  # inside a function
    assert used_parts(ast.parse("from hf_distill.evaluation import metrics, results")) == {
        "evaluation.metrics",
        "evaluation.results",
    }
    assert used_parts(ast.parse("from hf_distill import DistillationTrainer, __version__")) == {"training.trainer"}
    assert used_parts(ast.parse("def f():\n    import hf_distill.runs.train")) == {"runs.train"}


def test_the_package_has_ten_entries_and_its_type_marker() -> None:
    """A new thing is laid at the top, where everybody looks first, and the house has as many rooms as things."""
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert entries == {"__init__.py", "py.typed", "__main__.py", *ROOMS[1:]}


def test_a_module_imports_only_from_its_room_and_those_below() -> None:
    """A loss that reads a recipe, a teacher that knows its trainer: parts that cannot be used alone."""
    wrong = []
    for module, tree in TREES.items():
        room = module.split(".")[0]
        if room == "__init__":
            continue
        below = ROOMS[ROOMS.index(room) :]
        wrong += [f"{module} imports {used}" for used in used_parts(tree) if used.split(".")[0] not in below]
    assert not wrong


# ---- What only one module does ----


@pytest.mark.parametrize(("name", "homes"), CALLS_OF_ONE.items())
def test_only_one_module_calls(name: str, homes: set[str]) -> None:
    """Output in the middle of a user's notebook; a push to the Hub that nobody asked for."""
    callers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }
    assert callers <= homes


@pytest.mark.parametrize(("name", "homes"), IMPORTS_OF_ONE.items())
def test_only_one_module_imports(name: str, homes: set[str]) -> None:
    """YAML read in a second place, with other rules for `3e-4` and `no`."""
    users = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if any(found.split(".")[0] == name for found in imported(node))
    }
    assert users == homes


def test_nothing_is_written_to_standard_output_but_by_the_command_line() -> None:
    """`print` by another name."""
    writers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
    }
    assert writers <= CLI


# ---- The public names ----


def test_importing_the_package_and_its_command_line_is_fast() -> None:
    """`hf-distill --help` that takes seconds, because torch is imported by the way."""
    program = "import hf_distill, hf_distill.cli.main, sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "hf_distill.cli.main" in loaded
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
