"""Tests download nothing; those that need real data find them by HF_DISTILL_TEST_DATA."""

import os
import shutil
import tempfile
from pathlib import Path

# Before the libraries read them; the processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Scripts that tests start import the same helpers.
os.environ["PYTHONPATH"] = f"{Path(__file__).parents[1]}{os.pathsep}{Path(__file__).parent}"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_distill-")  # no token, and nothing that others have cached

import hypothesis
import pytest
import transformers

CACHES = os.environ["HF_HOME"]
transformers.logging.set_verbosity_error()
hypothesis.settings.register_profile("everywhere", derandomize=True, deadline=None)
hypothesis.settings.load_profile("everywhere")


def pytest_unconfigure() -> None:
    """Delete what was cached."""
    shutil.rmtree(CACHES, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder of its own, so that nothing is written beside the code."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real data and models, or skip."""
    folder = os.environ.get("HF_DISTILL_TEST_DATA")
    if not folder:
        if os.environ.get("HF_DISTILL_REQUIRE_DATA"):
            pytest.fail("HF_DISTILL_TEST_DATA is not set, and HF_DISTILL_REQUIRE_DATA wants no test skipped for it")
        pytest.skip("needs real data: set HF_DISTILL_TEST_DATA to the folder that holds data/ and models/")
    return Path(folder)
