"""`python -P -m trainer.fork_server`: a fork server whose attempts are those of `python -P -m trainer`.

It has imported torch, Ray and everything else that an attempt needs, and has not used any of it: no thread runs and
CUDA is untouched.
"""

import logging
import sys

from cluster.errors import ClusterError
from cluster.fork_server import run_fork_server
from cluster.process_env import keep_arrow_single_threaded, set_local_ray_environment
from cluster.settings import Settings
from trainer.distributed.ray_fork_imports import can_fork_ray, import_ray_agents, import_ray_for_forks, seed_fork


def preload() -> str | None:
    """Import what attempts of all kinds need; return why a fork of this process could not use it, or None."""
    import_ray_for_forks()
    import_ray_agents()
    import matplotlib.colors  # noqa: PLC0415, F401
    import torch.utils.tensorboard  # noqa: PLC0415, F401
    from PIL import Image  # noqa: PLC0415

    import trainer.__main__  # noqa: PLC0415
    import trainer.evaluate  # noqa: PLC0415
    import trainer.export  # noqa: PLC0415
    import trainer.predict  # noqa: PLC0415
    import trainer.report.gather  # noqa: PLC0415
    import trainer.search.run  # noqa: PLC0415
    import trainer.train  # noqa: F401, PLC0415
    from trainer.distributed.child_process import forks_can_use_gpus  # noqa: PLC0415
    from trainer.report.multi_label import MultiLabelReportData  # noqa: PLC0415
    from trainer.report.page import ReportData, compile_templates  # noqa: PLC0415
    from trainer.training.optimizer import import_compiler  # noqa: PLC0415

    compile_templates(ReportData.template, MultiLabelReportData.template)
    Image.preinit()  # imports the readers of the usual formats
    import_compiler()
    if not forks_can_use_gpus():
        return "an import has started CUDA, which no fork can use"
    if logging.getLogger().handlers:
        return "an import has configured the log, which is done by each attempt"
    can_fork_ray()
    return None


def attempt(arguments: list[str]) -> int:
    """Run an attempt in a fork, with the state that a process has after its imports, and return its exit code."""
    import trainer.__main__  # noqa: PLC0415

    sys.argv = [trainer.__main__.__file__, *arguments]
    seed_fork()
    return trainer.__main__.main(arguments)


def main() -> int:
    """Run the fork server; return its exit code, or that of an attempt in a fork."""
    try:
        if Settings.read().ray_address is None:
            set_local_ray_environment()  # as an attempt does, which then creates a token of its own
    except ClusterError as error:
        sys.stderr.write(f"attempts start cold: {error}\n")
        return 1
    keep_arrow_single_threaded()
    return run_fork_server(preload, attempt)


if __name__ == "__main__":
    sys.exit(main())
