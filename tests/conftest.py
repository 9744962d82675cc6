"""Tests download nothing; those that need real data find them by HF_DISTILL_TEST_DATA."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


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
