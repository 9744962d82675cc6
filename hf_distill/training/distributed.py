"""The end of a script that runs in several processes, as all of the project's own end."""

import gc
import time

from torch import distributed


def shutdown_processes() -> None:
    """Close the connections to the other processes, if there are any, so that none of them aborts on its way out.

    To be called by every process, as the last thing a script does. A process that ends while its group is open may
    abort: Gloo's threads may still hold tensors, whose release needs an interpreter that is gone by then
    (https://github.com/pytorch/pytorch/pull/179291), and the launcher then stops the others and reports a failure.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    gc.collect()  # models that are sharded keep their group, and are in cycles
    distributed.barrier()
    # Both for the threads to free their last tensors, and because a group that is closed while another process is
    # on its way out of the barrier breaks that one's connection. (Not by Accelerate's state: settings that are checked
    # on the way may have reset it in one process.)
    time.sleep(1)
    distributed.destroy_process_group()
