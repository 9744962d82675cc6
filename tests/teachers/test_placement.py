"""Where a teacher lives; this file is also the program of the processes that its tests of several start."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, distributed, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.teachers import placement as module
from hf_distill.teachers.loading import load_teacher
from hf_distill.teachers.memory import device_name, memory_needed
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.placement import (
    available_devices,
    check_placement,
    check_placement_words,
    heads_of,
    loading_options,
    memory_for_teacher,
    place,
    quantization_config,
)
from hf_distill.training.distributed import shutdown_processes

CPU = torch.device("cpu")
TEXT = "text-classification"
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0)


def family(name: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Build a teacher of a family, of the same weights in every process, and a batch for it."""
    if name in ("bert", "distilbert"):
        model = tiny.bert(num_layers=4) if name == "bert" else tiny.distilbert(num_layers=4)
        rows = tiny.text_rows(5)
        return model, {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "attention_mask")}
    model = tiny.vit(num_layers=4) if name == "vit" else tiny.resnet()
    return model, {"pixel_values": torch.stack([row["pixel_values"] for row in tiny.image_rows(5)])}


def logits_by_hand(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(**batch).logits
    return logits


def options(placement: str, quantization: str | None = None, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"task": TEXT, "device": CPU, "dtype": None, "student": tiny.distilbert(), **changes}
    return loading_options(placement, quantization, source="teacher", **settings)


# ---- Checks ----


@pytest.mark.parametrize("word", ["same", "cpu", "auto", "sharded", "cuda", "cuda:1", "mps", "xpu:0", "npu:3"])
def test_words_and_devices_are_accepted_without_a_device(word: str) -> None:
    """A recipe for another machine that cannot be checked on this one."""
    check_placement_words(word)


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:-1", "cuda:1 ", "cpu:0", "Same", "", "meta", "disk", 0, None])
def test_other_words_are_refused_with_what_is_possible(word: Any) -> None:
    """`gpu` that is found out once everything else is loaded."""
    with pytest.raises(ValueError, match=r"must be same, cpu, auto, sharded or a device .* such as cuda:1, got"):
        check_placement_words(word)
    with pytest.raises(ValueError, match="teacher_placement must be"):
        check_placement(word, None, num_processes=1, is_named=True)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    """An error from deep inside torch in the middle of loading."""
    with pytest.raises(ValueError, match=r"is 'cuda:99', and this machine has only cpu"):
        check_placement("cuda:99", None, num_processes=1, is_named=True)
    for device in available_devices():
        check_placement(device, None, num_processes=1, is_named=True)


def test_auto_is_refused_with_several_processes() -> None:
    """Several processes that each spread a teacher over the same devices."""
    check_placement("auto", None, num_processes=1, is_named=False)
    with pytest.raises(ValueError, match=r"this run has 2: use sharded"):
        check_placement("auto", None, num_processes=2, is_named=False)


def test_sharded_is_refused_in_a_run_that_was_not_launched() -> None:
    """A teacher whole on one device, of which the user thinks that it is sharded."""
    with pytest.raises(ValueError, match=r"started as a single one: start it with accelerate launch or torchrun"):
        check_placement("sharded", None, num_processes=1, is_named=False)


@pytest.mark.parametrize("placement", ["cpu", "sharded"])
def test_quantisation_is_refused_where_it_cannot_be(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that another one silently switches off."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=f"4bit does not go with teacher_placement {placement}"):
        check_placement(placement, "4bit", num_processes=1, is_named=True)


def test_quantisation_of_a_model_is_refused() -> None:
    """A teacher in full precision, of which the user thinks that it is quantised."""
    with pytest.raises(ValueError, match=r"the teacher is a model already: pass its Hub id or folder"):
        check_placement("same", "8bit", num_processes=1, is_named=False)
    with pytest.raises(ValueError, match=r"must be 8bit or 4bit, got '2bit'"):
        check_placement("same", "2bit", num_processes=1, is_named=True)


def test_what_quantisation_needs_and_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError that names no remedy; a GPU found missing after the download."""
    monkeypatch.setattr(module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install 'hf_distill\[quant\]'"):
        check_placement("same", "4bit", num_processes=1, is_named=True)
    monkeypatch.setattr(module, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(module, "available_devices", lambda: ["cpu"])
    with pytest.raises(ValueError, match=r"4bit needs a GPU, and this machine has none"):
        check_placement("same", "4bit", num_processes=1, is_named=True)


# ---- Loading ----


def test_a_teacher_on_the_cpu_is_loaded_as_ever() -> None:
    """Hooks of Accelerate on a model that needs none."""
    assert options("same") == options("cpu") == options("sharded") == {}


def test_auto_loads_a_named_teacher_over_the_memory_that_the_student_leaves() -> None:
    """A teacher that fills the device before the student's gradients are there."""
    tiny.bert().save_pretrained("teacher")
    chosen = options("auto")
    assert chosen["device_map"] == "auto"
    assert set(chosen["max_memory"]) == set(memory_for_teacher(tiny.distilbert(), CPU))
    teacher = load_teacher("teacher", TEXT, **chosen)
    assert (
        place(teacher, "auto", device=CPU, dtype=None, student=tiny.distilbert()) == next(teacher.parameters()).device
    )
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_student_keeps_what_its_training_will_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bytes for each trained parameter; the weights of a student that is there already are no longer free."""
    monkeypatch.setattr(module, "get_max_memory", lambda: {0: 1_000_000, 1: 1_000_000, "cpu": 2_000_000})
    student = tiny.distilbert()
    count = sum(parameter.numel() for parameter in student.parameters())
    assert memory_for_teacher(student, torch.device("cuda:0")) == {
        0: 900_000 - 16 * count,
        1: 900_000,
        "cpu": 1_800_000,
    }
    assert memory_for_teacher(student, torch.device("cuda:1"))[1] == 900_000 - 16 * count
    assert memory_for_teacher(student, CPU) == {0: 900_000, 1: 900_000, "cpu": 1_800_000 - 12 * count}
    student.requires_grad_(False)
    assert memory_for_teacher(student, torch.device("cuda:0"))[0] == 900_000 - 4 * count
    monkeypatch.setattr(module, "get_max_memory", lambda: {0: 1000})
    assert memory_for_teacher(student, torch.device("cuda:0")) == {0: 0}


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (tiny.bert(), ["classifier"]),
        (tiny.distilbert(), ["pre_classifier", "classifier"]),
        (tiny.vit(), ["classifier"]),
        (tiny.convnext(), ["classifier"]),
    ],
)
def test_the_head_is_what_is_not_the_base_model(model: PreTrainedModel, heads: list[str]) -> None:
    """A head that is quantised with the rest, and loses accuracy."""
    assert heads_of(model) == heads


def test_quantised_loading_spares_the_head_and_names_the_arithmetic() -> None:
    """4 bit weights multiplied in float32, which is the library's default and slow."""
    eight, four = (quantization_config(kind, None, ["classifier"]) for kind in ("8bit", "4bit"))
    assert eight.load_in_8bit
    assert not eight.load_in_4bit
    assert four.load_in_4bit
    assert eight.llm_int8_skip_modules == four.llm_int8_skip_modules == ["classifier"]
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert (
        four.bnb_4bit_compute_dtype == quantization_config("4bit", "auto", []).bnb_4bit_compute_dtype == torch.bfloat16
    )
    assert quantization_config("4bit", "float16", []).bnb_4bit_compute_dtype == torch.float16


def test_quantised_options_name_the_heads_of_the_saved_teacher() -> None:
    """Names of one architecture's head used for another's."""
    tiny.distilbert().save_pretrained("teacher")
    chosen = options("auto", "8bit")
    assert chosen["quantization_config"].llm_int8_skip_modules == ["pre_classifier", "classifier"]
    assert chosen["device_map"] == "auto"


def test_quantisation_in_a_run_on_the_cpu_is_refused() -> None:
    """`use_cpu` on a machine that has a GPU."""
    with pytest.raises(ValueError, match=r"8bit needs the teacher on a GPU, and this run is on the CPU"):
        options("same", "8bit")


def test_a_quantised_teacher_that_is_not_there_is_refused_in_one_line() -> None:
    """A page of traceback for a misspelt name."""
    with pytest.raises(ValueError, match=r"cannot load the teacher 'teacher' for text-classification: .") as error:
        options("auto", "8bit")
    assert "\n" not in str(error.value)


# ---- One process ----


@pytest.mark.parametrize("placement", ["same", "cpu", "auto"])
def test_a_placed_teacher_is_frozen_and_answers_as_before(placement: str) -> None:
    """A teacher that is trained, or drops units, because it went another way."""
    model, batch = family("bert")
    expected = logits_by_hand(copy.deepcopy(model), batch)
    model.train()
    where = place(model, placement, device=CPU, dtype=None, student=tiny.distilbert())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        logits = model(**{name: value.to(where) for name, value in batch.items()}).logits
    torch.testing.assert_close(logits.to(CPU), expected)


def test_the_type_of_the_weights_is_changed_on_the_way() -> None:
    """A teacher_dtype that holds for one placement only."""
    for placement in ("same", "cpu", "auto"):
        model, _ = family("vit")
        place(model, placement, device=CPU, dtype=torch.bfloat16, student=tiny.vit())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_teacher_that_is_spread_already_stays_as_it_is() -> None:
    """A dispatched model moved to one device by force, or its type changed under its hooks."""
    model, _ = family("bert")
    model.hf_device_map = {"bert": "cpu", "classifier": "disk"}
    for placement in ("same", "auto", "cpu"):
        assert place(model, placement, device=CPU, dtype=torch.bfloat16, student=tiny.distilbert()) == CPU
    assert next(model.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"spread over several devices, so it cannot be moved from cpu to .* sharded"):
        place(model, "sharded", device=CPU, dtype=None, student=tiny.distilbert())


def test_a_teacher_that_does_not_fit_is_refused_with_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the teacher written to a disk that nobody named."""
    monkeypatch.setattr(module, "memory_for_teacher", lambda *_: {"cpu": 3000})
    with pytest.raises(ValueError, match=r"does not fit into the free memory .*\(cpu: 0 MiB\)"):
        place(family("bert")[0], "auto", device=CPU, dtype=None, student=tiny.distilbert())


def test_weights_that_are_not_in_this_process_are_refused() -> None:
    """Empty weights that teach noise, as FSDP's loading in one process leaves them in the others."""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"not all in this process.*fsdp_cpu_ram_efficient_loading to false"):
        place(model, "same", device=CPU, dtype=None, student=tiny.distilbert())


# ---- Two processes ----


def start_two_processes(what: str, **environment: str) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, what]
    variables = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert Path("done-0").exists()
    assert Path("done-1").exists()


@pytest.mark.slow
def test_a_sharded_teacher_answers_as_the_whole_one_with_half_of_it_in_each_process() -> None:
    """A shard taken for the whole; a teacher said to be sharded and kept whole; logits that are no plain tensors."""
    start_two_processes("logits")


@pytest.mark.slow
def test_training_with_a_sharded_teacher_is_training_with_a_whole_one() -> None:
    """A teacher that lands in the optimizer, a checkpoint or among Accelerate's models."""
    tiny.bert(1, num_layers=4, initializer_range=0.3).save_pretrained("teacher")
    start_two_processes("training")


@pytest.mark.slow
def test_a_named_teacher_is_whole_in_every_process_of_an_fsdp_run() -> None:
    """`from_pretrained` that leaves weights out in all processes but the first, to be sent by who wraps the model."""
    tiny.bert(1).bert.save_pretrained("encoder")
    start_two_processes("loading", ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true")


def compare_logits() -> None:
    for name in ("bert", "distilbert", "vit", "resnet"):
        model, batch = family(name)
        mine = {key: value[distributed.get_rank() :] for key, value in batch.items()}  # another number of rows in each
        expected = logits_by_hand(copy.deepcopy(model), mine)
        total = sum(parameter.numel() for parameter in model.parameters())
        check_placement("sharded", None, num_processes=2, is_named=False)
        teacher = TeacherModel(model, tiny.distilbert(1), device=CPU, placement="sharded")
        for _ in range(2):  # the second time after the blocks were gathered once
            logits = teacher(mine).logits[0]
            assert type(logits) is Tensor
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        shards: list[Any] = list(model.parameters())
        share = sum(shard.to_local().numel() for shard in shards) / total
        assert 0.45 < share < 0.55, (name, share)
        assert not any(shard.requires_grad for shard in shards)
        model.train()
        torch.testing.assert_close(teacher(mine).logits[0], expected, atol=1e-5, rtol=1e-5)
    half, batch = family("bert")
    TeacherModel(half, tiny.distilbert(1), device=CPU, placement="sharded", dtype="bfloat16")(batch).logits[0]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def compare_training() -> None:
    losses, weights = {}, {}
    for placement in ("same", "sharded"):
        args = DistillationConfig(
            output_dir=placement,
            alpha=0.5,
            teacher_placement=placement,
            allow_untrained_teacher=True,
            max_steps=3,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_strategy="steps",
            save_steps=3,
            **tiny.SGD,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            ddp_find_unused_parameters=False,
        )
        rows = tiny.text_rows(16)
        trainer = DistillationTrainer(
            model=tiny.distilbert(), teacher="teacher", args=args, train_dataset=rows, eval_dataset=rows[:8]
        )
        assert trainer.accelerator.num_processes == 2
        trainer.evaluate()  # with a teacher among Accelerate's models the student would not be prepared here
        trainer.train()
        names = [name for name, _ in trainer.accelerator.unwrap_model(trainer.model).named_parameters()]
        student = tiny.distilbert()
        assert names == [name for name, _ in student.named_parameters()]
        assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(names)
        assert len(trainer.accelerator._models) == 1
        losses[placement] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        weights[placement] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        assert len(losses[placement]) == 3
        saved = load_teacher(str(Path(placement) / "checkpoint-3"), TEXT)
        assert set(saved.state_dict()) == set(student.state_dict())
        distributed.barrier()
    torch.testing.assert_close(losses["sharded"], losses["same"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights["sharded"], weights["same"], atol=1e-5, rtol=1e-5)


def compare_loading() -> None:
    encoder = tiny.bert(1).bert.state_dict()
    teacher: Any = load_teacher("encoder", TEXT, allow_untrained=True)
    assert not any(parameter.is_meta for parameter in teacher.parameters())
    assert encoder
    assert all(torch.equal(teacher.bert.state_dict()[name], weight) for name, weight in encoder.items())
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    # The trap is still there: without it, this test would show nothing.
    as_student = BertForSequenceClassification.from_pretrained("encoder")
    assert any(parameter.is_meta for parameter in as_student.parameters()) == (distributed.get_rank() > 0)


# ---- Memory and names ----


def test_memory_is_counted_from_the_parameters() -> None:
    """A check that says a model fits when its optimizer state does not."""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=2))
    count = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    trained = memory_needed(model, torch.float32, is_trained=True)
    assert trained["weights"] == pytest.approx((4 * count + buffers) / 2**20)
    assert trained["gradients"] == pytest.approx(4 * count / 2**20)
    assert trained["optimizer state"] == pytest.approx(8 * count / 2**20)
    frozen = memory_needed(model, torch.bfloat16, is_trained=False)
    assert frozen == {"weights": pytest.approx((2 * count + buffers) / 2**20), "gradients": 0, "optimizer state": 0}
    model.bert.requires_grad_(False)
    assert memory_needed(model, torch.float32, is_trained=True)["gradients"] < 0.1


@pytest.mark.parametrize(
    ("optimizer", "width"),
    [("adamw_torch_fused", 8), ("sgd", 0), ("adafactor", 0), ("paged_adamw_8bit", 2), ("paged_lion_32bit", 4)],
)
def test_the_state_of_an_optimizer_is_counted_by_its_kind(optimizer: str, width: int) -> None:
    """Two moments in float32 counted for an optimizer that was chosen to have none."""
    model = tiny.bert()
    count = sum(parameter.numel() for parameter in model.parameters())
    needed = memory_needed(model, torch.float32, is_trained=True, optimizer=optimizer)
    assert needed["optimizer state"] == pytest.approx(width * count / 2**20)


def test_quantised_memory_spares_head_and_embeddings() -> None:
    """A quarter of everything, where only the linear layers of the encoder shrink."""
    model = tiny.bert()
    linear = sum(m.weight.numel() for m in model.bert.modules() if isinstance(m, nn.Linear))
    whole = memory_needed(model, torch.float32, is_trained=False)["weights"]
    for quantization, width in (("8bit", 1.0), ("4bit", 0.516)):
        small = memory_needed(model, torch.float32, is_trained=False, quantization=quantization)["weights"]
        assert whole - small == pytest.approx(linear * (4 - width) / 2**20, rel=1e-3)


def test_a_place_is_named_in_words() -> None:
    """`same`, of which the reader cannot tell what it means on this machine."""
    assert device_name("cpu").startswith("cpu (")
    assert "GiB free" in device_name("same", use_cpu=True)
    assert device_name("sharded", use_cpu=True).startswith("in equal parts on the device of each process, here cpu (")
    assert device_name("auto").endswith("GiB free)")
    assert device_name("mps") == "mps:0"


# ---- On another device ----


@NEEDS_GPU
@pytest.mark.parametrize(("placement", "device"), [("cpu", GPU), ("cuda:0", CPU), ("same", GPU), ("auto", GPU)])
def test_a_teacher_on_another_device_answers_on_the_students(placement: str, device: torch.device) -> None:
    """Logits on the teacher's device, or inputs on the student's."""
    model, batch = family("bert")
    expected = logits_by_hand(copy.deepcopy(model), batch)
    teacher = TeacherModel(model, tiny.distilbert(1).to(device), device=device, placement=placement)
    logits = teacher({name: value.to(device) for name, value in batch.items()}).logits[0]
    assert logits.device.type == device.type
    torch.testing.assert_close(logits.to(CPU), expected, atol=1e-4, rtol=1e-4)


@NEEDS_GPU
@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_teacher_answers_almost_as_before(quantization: str) -> None:
    """A quantised head; a teacher that is moved or converted once it is quantised."""
    tiny.bert(hidden_size=64).save_pretrained("teacher")
    batch = family("bert")[1]
    expected = logits_by_hand(tiny.bert(hidden_size=64), batch)
    check_placement("same", quantization, num_processes=1, is_named=True)
    model = load_teacher("teacher", TEXT, **options("same", quantization, device=GPU))
    assert type(model.classifier) is nn.Linear
    assert type(model.bert.encoder.layer[0].intermediate.dense) is not nn.Linear
    teacher = TeacherModel(model, tiny.distilbert(1).to(GPU), device=GPU)
    logits = teacher({name: value.to(GPU) for name, value in batch.items()}).logits[0]
    torch.testing.assert_close(logits.to(CPU), expected, atol=0.05, rtol=0.1)


if __name__ == "__main__":
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    assert distributed.get_world_size() == 2
    {"logits": compare_logits, "training": compare_training, "loading": compare_loading}[sys.argv[1]]()
    Path(f"done-{distributed.get_rank()}").touch()
    shutdown_processes()
