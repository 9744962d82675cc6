"""The fixture `hub`; a test module asks for it by `pytest_plugins = ["local_hub.fixture"]`.

The libraries read their environment when they are imported, so that their copies are set for the time of a test.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import evaluate.config
import huggingface_hub
import pytest
import transformers.utils.hub
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import _cache_manager, _detect_agent
from local_hub.server import LocalHub


def pytest_configure(config: pytest.Config) -> None:
    """Let the client send a file to LFS as it does: httpx2 thinks its `data=` old."""
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Start a Hub and point the client, transformers and datasets of this process at it, with empty caches."""
    home = tmp_path_factory.mktemp("hf_home")
    with LocalHub(home) as local:
        _point_at(local, home, monkeypatch)
        yield local
        huggingface_hub.close_session()
        HfFileSystem.clear_instance_cache()
    assert not local.errors, "\n".join(local.errors)


def _point_at(hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = hub.environment
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cache = str(home / "hub")
    copies: dict[str, object] = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": cache,
        "HUGGINGFACE_HUB_CACHE": cache,
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
    }
    for name, copy in copies.items():
        monkeypatch.setattr(constants, name, copy)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # made once, with the endpoint of that time
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
    for config in (datasets.config, evaluate.config):
        monkeypatch.setattr(config, "HF_ENDPOINT", hub.url)
    data = home / "datasets"
    of_datasets: dict[str, object] = {
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": data,
        "DOWNLOADED_DATASETS_PATH": data / "downloads",
        "EXTRACTED_DATASETS_PATH": data / "downloads" / "extracted",
        "USE_PARQUET_EXPORT": False,  # the dataset viewer is another server
    }
    for name, copy in of_datasets.items():
        monkeypatch.setattr(datasets.config, name, copy)
    huggingface_hub.close_session()
    HfFileSystem.clear_instance_cache()
