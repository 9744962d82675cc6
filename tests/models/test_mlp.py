import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification

from hf_distill.models.mlp import MLPConfig, MLPForImageClassification

LABELS = {"id2label": {0: "zero", 1: "one", 2: "two"}, "label2id": {"zero": 0, "one": 1, "two": 2}}

# Loads a saved model where hf_distill is not installed: the finder comes before the one of an editable installation.
STRANGER = """
import json, sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_distill":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())

import torch
from transformers import AutoModelForImageClassification

try:
    import hf_distill
except ModuleNotFoundError:
    pass
else:
    sys.exit("hf_distill can be imported, so this proves nothing")

model = AutoModelForImageClassification.from_pretrained("mlp", trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(torch.load("pixels.pt")).logits
torch.save(logits, "logits.pt")
print(json.dumps({"module": type(model).__module__, "labels": model.config.id2label}))
"""


def mlp(seed: int = 0, **config: object) -> MLPForImageClassification:
    torch.manual_seed(seed)
    shape = {"image_size": 4, "num_channels": 2, "hidden_sizes": [6, 5]}
    return MLPForImageClassification(MLPConfig(**{**shape, **LABELS, **config}))


def pixels() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(pixels()).logits


# ---- The network ----


def test_logits_are_those_of_the_layers_by_hand() -> None:
    """A ReLU after the head, or none between two layers."""
    model = mlp()
    first, second = (module for module in model.layers if isinstance(module, torch.nn.Linear))
    assert (first.in_features, first.out_features, second.out_features) == (2 * 4 * 4, 6, 5)
    hidden = (pixels().flatten(1) @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    expected = hidden @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(logits(model), expected)


def test_dropout_is_off_unless_asked_for_and_in_evaluation() -> None:
    """A student that is noisier than its config says."""
    plain = mlp().train()
    assert torch.equal(plain(pixels()).logits, plain(pixels()).logits)
    noisy = mlp(input_dropout=0.5, hidden_dropout=0.5)
    assert not torch.equal(noisy.train()(pixels()).logits, noisy(pixels()).logits)
    assert torch.equal(logits(noisy), logits(plain))


@pytest.mark.parametrize(("setting", "place"), [("input_dropout", 1), ("hidden_dropout", 4)])
def test_each_dropout_is_where_its_name_says(setting: str, place: int) -> None:
    """Two settings exchanged."""
    rates = {i: m.p for i, m in enumerate(mlp(**{setting: 0.3}).layers) if isinstance(m, torch.nn.Dropout)}
    assert rates[place] == 0.3
    assert rates[1] == (0.3 if setting == "input_dropout" else 0.0)


def test_loss_is_the_mean_cross_entropy() -> None:
    """A model that plain Trainer cannot train."""
    labels = torch.tensor([0, 2, 1])
    outputs = mlp().eval()(pixels(), labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    assert mlp()(pixels()).loss is None


def test_the_same_seed_gives_the_same_weights() -> None:
    """A run that cannot be repeated."""
    assert torch.equal(logits(mlp()), logits(mlp()))
    assert not torch.equal(logits(mlp()), logits(mlp(seed=1)))


# ---- Saving and loading ----


def test_auto_classes_load_a_saved_model_without_remote_code_where_the_package_is() -> None:
    """Weights drawn anew after loading: every weight has a name that is in the checkpoint, so nothing warns."""
    model = mlp()
    model.save_pretrained("mlp")
    loaded, report = AutoModelForImageClassification.from_pretrained("mlp", output_loading_info=True)
    assert type(loaded) is MLPForImageClassification
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.hidden_sizes == [6, 5]
    assert loaded.config.id2label == LABELS["id2label"]


def test_a_head_of_another_size_is_drawn_and_nothing_else() -> None:
    """A head of zeros, from memory that no initialisation has touched, or hidden layers drawn anew."""
    model = mlp()
    model.save_pretrained("mlp")
    torch.manual_seed(5)
    loaded = AutoModelForImageClassification.from_pretrained("mlp", num_labels=7, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.layers[2].weight, model.layers[2].weight)
    assert loaded.classifier.weight.shape == (7, 5)
    assert 0.01 < float(loaded.classifier.weight.detach().std()) < 2


def test_a_model_built_by_its_type_has_the_config_of_the_type() -> None:
    """A name in a recipe that no Auto class knows."""
    config = AutoConfig.for_model("hf_distill_mlp", hidden_sizes=(4,))
    assert type(config) is MLPConfig
    assert config.hidden_sizes == [4]
    assert type(AutoModelForImageClassification.from_config(config)) is MLPForImageClassification


@pytest.mark.slow
def test_a_stranger_loads_a_saved_folder_without_the_package() -> None:
    """A published model that only its author can load."""
    model = mlp()
    model.save_pretrained("mlp")
    assert json.loads(Path("mlp/config.json").read_text())["auto_map"] == {
        "AutoConfig": "mlp.MLPConfig",
        "AutoModelForImageClassification": "mlp.MLPForImageClassification",
    }
    torch.save(pixels(), "pixels.pt")
    Path("stranger.py").write_text(STRANGER)
    environment = {
        **os.environ,
        "HF_HOME": str(Path("home").resolve()),
        "HF_MODULES_CACHE": str(Path("modules").resolve()),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run([sys.executable, "stranger.py"], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["module"].startswith("transformers_modules.")
    assert found["labels"] == {"0": "zero", "1": "one", "2": "two"}
    torch.testing.assert_close(torch.load("logits.pt"), logits(model))


def test_weights_start_as_small_as_asked():
    """A setting that has no effect: how small a start is decides how well these nets generalise."""
    torch.manual_seed(0)
    model = MLPForImageClassification(MLPConfig(hidden_sizes=[400, 400], initializer_range=0.01))
    for layer in (module for module in model.modules() if isinstance(module, torch.nn.Linear)):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
