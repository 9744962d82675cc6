"""The launch configs, read and merged by Accelerate's own code."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.config.default import write_basic_config
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import ComputeEnvironment, DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parent.parent / "recipes" / "accelerate"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "fsdp2": DistributedType.FSDP,
    "multi_node": DistributedType.MULTI_GPU,
}
SLURM = FOLDER / "multi_node.slurm"


def merged(name: str, *words: str) -> Any:
    """Return what `accelerate launch` makes of a config, its defaults and the command line."""
    command = ["--config_file", str(CONFIGS[name]), *words, "-m", "hf_distill", "train", "vision/digits"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return args


def test_the_configs_are_those_four() -> None:
    """Every test below passes on an empty folder."""
    assert set(CONFIGS) == set(TYPES)
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path in CONFIGS.values()} | {SLURM.name}


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_a_config_as_what_it_is(name: str) -> None:
    """A key that this version does not know, or a file that a newer one refuses."""
    config = load_config_from_file(str(CONFIGS[name]))
    assert isinstance(config, ClusterConfig)
    assert config.compute_environment == ComputeEnvironment.LOCAL_MACHINE
    assert config.distributed_type == TYPES[name]
    assert config.num_processes > 1
    assert config.mixed_precision == "no"  # the string; a bare `no` is read as False


@pytest.mark.parametrize("name", TYPES)
def test_a_config_opens_with_what_it_is_for_and_its_command(name: str) -> None:
    """A command in a comment that names another file."""
    comment = re.match(r"(#.*\n)+", CONFIGS[name].read_text())
    assert comment is not None
    expected = f"#     accelerate launch --config_file recipes/accelerate/{name}.yaml -m hf_distill train RECIPE\n"
    assert expected in comment.group()


@pytest.mark.parametrize("name", TYPES)
def test_launch_takes_over_every_setting_of_a_config(name: str) -> None:
    """A misspelt key of a nested section: the loader keeps it, and the launcher never reads it."""
    args = merged(name)
    assert args.training_script == "hf_distill"
    assert args.module
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    config = yaml.safe_load(CONFIGS[name].read_text())
    nested = {**config.get("fsdp_config", {}), **config.get("deepspeed_config", {})}
    assert set(nested) <= known
    assert {key: getattr(args, key) for key in nested} == nested
    assert args.num_processes == config["num_processes"]
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == (
        TYPES[name] == DistributedType.MULTI_GPU,
        TYPES[name] == DistributedType.FSDP,
        TYPES[name] == DistributedType.DEEPSPEED,
    )


def test_fsdp_is_the_second_version_and_saves_the_student_whole() -> None:
    """A checkpoint in shards, that no one can load by from_pretrained; the first version by default."""
    environment = prepare_multi_gpu_env(merged("fsdp2", "--main_process_port", "0"))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_zero_3_gathers_the_student_when_it_is_saved_and_leaves_batches_to_the_recipe() -> None:
    """Empty weights in the saved model; an accumulation of 1 that contradicts the recipe's."""
    config = yaml.safe_load(CONFIGS["deepspeed_zero3"].read_text())["deepspeed_config"]
    assert config["zero_stage"] == 3
    assert config["zero3_save_16bit_model"] is True
    assert config["zero3_init_flag"] is False
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & set(config)


def test_several_machines_meet_at_the_first() -> None:
    """All processes counted for each machine; a rank that stays 0 on the second."""
    args = merged("multi_node", "--machine_rank", "1")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "192.168.0.1:29500")


@pytest.mark.slow
def test_accelerate_launches_the_processes_of_a_config() -> None:
    """A config that is read and merged and then starts one process."""
    Path("rank.py").write_text("import os\nopen(os.environ['RANK'] + '-of-' + os.environ['WORLD_SIZE'], 'w').close()\n")
    for name, count in (("ddp", 2), ("fsdp2", 3)):
        command = ["--config_file", CONFIGS[name], "--num_processes", count, "--main_process_port", 0, "rank.py"]
        call = [sys.executable, "-m", "accelerate.commands.launch", *map(str, command)]
        subprocess.run(call, check=True, capture_output=True)
        assert {path.name for path in Path().glob(f"*-of-{count}")} == {f"{rank}-of-{count}" for rank in range(count)}


@pytest.mark.slow
def test_two_machines_find_each_other() -> None:
    """A second machine that waits for ever, or that counts its processes from 0 again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("rank.py").write_text("import os\nopen(os.environ['RANK'] + '-of-' + os.environ['WORLD_SIZE'], 'w').close()\n")
    command = ["--config_file", CONFIGS["multi_node"], "--num_processes", 4, "--main_process_ip", "127.0.0.1"]
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch"),
                *(str(word) for word in [*command, "--main_process_port", port, "--machine_rank", rank, "rank.py"]),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=300)
        assert machine.returncode == 0, errors[-3000:]
    assert {path.name for path in Path().glob("*-of-4")} == {f"{rank}-of-4" for rank in range(4)}


def test_a_config_that_accelerate_writes_is_read_too(tmp_path: Path) -> None:
    """A reader in these tests that takes our own files only."""
    for name in ("basic.yaml", "basic.json"):
        assert write_basic_config(save_location=str(tmp_path / name))
    config = load_config_from_file(str(tmp_path / "basic.json"))
    assert isinstance(config, ClusterConfig)
    assert config.compute_environment == ComputeEnvironment.LOCAL_MACHINE


# ---- Slurm ----


def test_the_slurm_file_is_bash() -> None:
    """A quote that is not closed, found after hours in the queue."""
    subprocess.run(["bash", "-n", SLURM], check=True)
    lines = SLURM.read_text().splitlines()
    settings = [place for place, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [place for place, line in enumerate(lines) if line and not line.startswith("#")]
    assert settings
    assert max(settings) < min(commands)  # Slurm reads none after the first command


def test_slurm_gives_each_machine_its_rank_and_all_the_same_meeting_point(tmp_path: Path) -> None:
    """A rank read on the first machine for all; arguments of a recipe split at their spaces."""
    stand_ins = {
        "scontrol": 'printf "node-a\\nnode-b\\n"',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"",
    }
    for name, body in stand_ins.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    of_slurm = {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "4711",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_PER_NODE": "4",
    }
    environment = {**os.environ, **of_slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    call = ["bash", str(SLURM), "text/sst2_minilm", "data.path=a folder"]
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
    started = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(started) == 2
    parser = launch_command_parser()
    for rank, words in enumerate(started):
        assert words[0] == "launch"
        args = parser.parse_args(words[1:])
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 8, rank)
        assert (args.main_process_ip, args.main_process_port) == ("node-a", 24711)
        assert (FOLDER.parent.parent / args.config_file).is_file()
        assert args.training_script_args == ["train", "text/sst2_minilm", "data.path=a folder"]
    assert subprocess.run(["bash", str(SLURM)], capture_output=True, env=environment, check=False).returncode == 2
