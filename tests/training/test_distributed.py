"""Whether scripts in several processes end without an abort."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from hf_distill.training.distributed import shutdown_processes


def test_alone_there_is_nothing_to_part_with():
    """A script that fails, or waits, because it was not started by a launcher."""
    assert not distributed.is_initialized()
    shutdown_processes()


def test_the_former_name_still_works():
    """Scripts of the last release end with an ImportError."""
    from hf_distill.parting import part_with_other_processes

    assert part_with_other_processes is shutdown_processes
    with pytest.raises(ImportError):
        from hf_distill.parting import another  # noqa: F401


@pytest.mark.slow
def test_processes_end_well_while_their_threads_still_hold_tensors():
    """An abort after all is done: a group in a cycle is not closed by `destroy_process_group`, its threads go on."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert Path("done-0").exists()
    assert Path("done-1").exists()


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    sums = [distributed.all_reduce(torch.ones(2_000), async_op=True) for _ in range(3000)]
    cycle: list[object] = [distributed.group.WORLD]
    cycle.append(cycle)
    del cycle, sums
    Path(f"done-{distributed.get_rank()}").touch()
    shutdown_processes()
