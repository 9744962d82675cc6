"""The wheel, where nothing is installed but what it requires."""

import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def call(*command: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def link_requirements(name: str, packages: Path) -> set[str]:
    """Put what a package requires, and what that requires, into an environment, as links to what is installed here."""
    waiting, seen = [Requirement(name)], set()
    while waiting:
        wanted = waiting.pop()
        distribution = metadata.distribution(wanted.name)
        for extra in ({""} | wanted.extras) - {key[1] for key in seen if key[0] == wanted.name}:
            seen.add((wanted.name, extra))
            each = map(Requirement, distribution.requires or ())
            waiting += [r for r in each if r.marker is None or r.marker.evaluate({"extra": extra})]
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            if wanted.name != name and not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    return {key[0] for key in seen}


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_empty_environment(tmp_path):
    """What is in the clone but not in the wheel, or is installed only for work on the package."""
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "hf_distill/py.typed",
        "hf_distill/runs/recipe/bundled/vision/digits.yaml",
        "hf_distill/hub/card/template.md",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    call(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    packages = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    linked = link_requirements("hf_distill", packages)
    assert {"torch", "transformers", "aiohttp"} <= linked  # the last is what an extra of another's requires
    assert not {"pytest", "ruff", "optuna"} & linked
    command = tmp_path / "env" / "bin" / "hf-distill"
    assert "vision/digits" in call(command, "recipes", "list")
    few = ("teacher.training.num_train_epochs=4", "training.num_train_epochs=4", "training.use_cpu=true")
    printed = call(command, "train", "vision/digits", "output_dir=run", *few)
    assert "baseline" in printed
    results = json.loads(Path("run/results.json").read_text())
    assert results["recipe"] == "vision/digits"
    assert results["student"]["metrics"]["accuracy"] > 0.5
    assert Path("run/student/README.md").read_text().startswith("---\n")
