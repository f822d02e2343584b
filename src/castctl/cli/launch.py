"""`--gpus`: the same command in several processes of this machine, by torchrun's launcher."""

from __future__ import annotations

import logging
import sys
import uuid
from typing import NoReturn

from castctl.errors import UserError


def launch(processes: int, on_cpu: bool) -> NoReturn:
    """Run this process's command as so many ranks; exit as the first of them that failed.

    Raises `UserError` where there are fewer GPUs.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if not on_cpu and (there := torch.cuda.device_count()) < processes:
        raise UserError(
            f"--gpus {processes}, but torch sees {there}; name fewer, or add --device cpu to train "
            "in so many processes without one"
        )
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logger = logging.getLogger(name)  # below which each has a level of its own
        logger.propagate = False
        logger.addHandler(logging.NullHandler())  # the ranks say it themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "castctl", *sys.argv[1:])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values() if failure.exitcode > 0]
        sys.exit(codes[0] if codes else 2)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)
