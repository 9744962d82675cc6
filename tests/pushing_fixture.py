"""A finished run to push; a test module asks for it by `pytest_plugins = ["pushing_fixture"]`, and never imports it."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import _http
from pushing import state, write_digits_recipe

from hf_distill.cli import main as cli
from hf_distill.evaluation.results import Results
from hf_distill.hub import client as asking
from hf_distill.runs import run_card
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill

pytest_plugins = ["local_hub.fixture"]
_DRAWN: dict[str, bytes | None] = {}


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Return a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = write_digits_recipe(folder / "digits.yaml", output_dir=str(folder / "run"))
    distill(load_recipe(recipe), "digits")
    return folder / "run"


@pytest.fixture
def run(trained) -> Path:
    """Return a copy of the run that a test may change or delete."""
    return Path(shutil.copytree(trained, "run"))


@pytest.fixture
def left_alone(trained) -> Iterator[None]:
    """Find out whether a push, successful or not, has touched the run."""
    before = state(trained)
    yield
    assert state(trained) == before


@pytest.fixture
def no_waiting(monkeypatch) -> None:
    """Take out what waits between two tries, here and in the client, and draw each run's curves once."""
    monkeypatch.setattr(asking, "PAUSES", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None}))
    monkeypatch.setattr(run_card, "training_curves", _drawn_once(run_card.training_curves))


LOADING = ": reading the recipe and loading the libraries\n"


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line in this process: exit code, stdout, stderr without progress."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-distill", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith(("error: ", "note: ", "Traceback"))]
        out = "".join(line for line in printed.out.splitlines(keepends=True) if not line.endswith(LOADING))
        return int(ended.value.code or 0), out, "\n".join(lines)

    return run


def _drawn_once(draw: Callable[[Results], bytes | None]) -> Callable[[Results], bytes | None]:
    def drawn(results: Results) -> bytes | None:
        curves = json.dumps(results.curves)
        if curves not in _DRAWN:
            _DRAWN[curves] = draw(results)
        return _DRAWN[curves]

    return drawn
