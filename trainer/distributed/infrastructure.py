"""Which errors of Ray, NCCL, CUDA, gloo and the operating system are the fault of the infrastructure.

An attempt that the infrastructure ended is tried again; an error of the run itself would only be raised again. The
libraries raise most of them as RuntimeError, so `TABLE` tells them apart by their messages; its first match counts.
"""

import re
from dataclasses import dataclass

import ray.exceptions
from ray.train.v2._internal.exceptions import RayTrainError, UserExceptionWithTraceback

from cluster.files import INFRASTRUCTURE_ERRNOS
from trainer.errors import InfrastructureError, TrainerError, causes, fault_text


@dataclass(frozen=True)
class KnownError:
    """A message of a library, and what it means.

    Attributes:
        pattern: Regular expression that the message contains, case ignored.
        retry: Whether the infrastructure is at fault, so that another attempt may succeed.
        text: The fault in one line, and the cure where a person has to do something.
    """

    pattern: str
    retry: bool
    text: str


GPU_FAULT = "a GPU failed; look at `nvidia-smi` and the kernel's log of that machine"
GPU_BUSY = "a GPU is in use by another program or cannot be reached; look at `nvidia-smi` on that machine"
CONNECTION = "a worker lost its connection to another worker, which ended or cannot be reached"
BUG = "the program made an invalid GPU operation; report it with the log of this run"
RAY_GONE = "Ray's head node cannot be reached"

TABLE = (
    # Ray
    KnownError("current node timed out during startup", True, "Ray did not start in time; the machine is overloaded"),
    KnownError("worker group startup timed out", True, "the workers did not start in time; the cluster is busy"),
    KnownError("running low on memory|out.?of.?memory.*ray.*kill", True,
               "Ray ended a worker because its machine had no memory left; use fewer --workers or more memory"),
    KnownError("(fail|could not|unable).{0,40}(connect to|get|find).{0,40}(gcs|raylet|ray instance)", True, RAY_GONE),
    KnownError("gcs.{0,40}(died|dead|unavailable|disconnect|unreachable)", True, RAY_GONE),
    KnownError("(?<!dataloader )(node|raylet|actor|worker|owner).{0,60}(has )?(died|crashed|was preempted)", True,
               "a node or a worker process ended"),
    KnownError("(invalid|missing|wrong).{0,40}authentication token|unauthenticated", False,
               "Ray refuses this token; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"),
    # memory of a GPU: before NCCL, which reports it as an unhandled CUDA error
    KnownError(r"cublas_status_alloc_failed|cuda (error: )?out of memory|cuda failure (\d+ )?'out of memory'", False,
               "the GPU has no memory left; use a smaller --batch-size"),
    # NCCL
    KnownError("doesn't have (nccl|gloo) built in", False,
               "the installed torch lacks NCCL or gloo, which connect the workers; install a torch that has them"),
    KnownError("duplicate gpu detected|multiple ranks are using the same gpu", False,
               "two workers got the same GPU, or MIG instances of one card, which NCCL may count as one; use at most "
               "as many --workers as there are GPUs"),
    KnownError("nccl.*invalid (usage|argument)|ncclinvalid", False, BUG),
    KnownError("nccl.*(unhandled|system error|internal error|remote error)|nccl(system|internal|remote)error", True,
               "NCCL lost a GPU or the network between the workers"),
    KnownError("watchdog caught collective operation timeout|collective.{0,40}timed out", True,
               "a worker waited too long for another one, which hangs or ended"),
    # CUDA
    KnownError("uncorrectable ecc|nvlink error|hardware stack error|fallen off the bus", True, GPU_FAULT),
    KnownError("unspecified launch failure|launch timed out|cuda error: unknown error|system not yet initialized", True,
               GPU_FAULT),
    KnownError("no cuda-capable device|busy or unavailable|device.{0,20}(is lost|removed)", True, GPU_BUSY),
    KnownError("no kernel image is available|driver version is insufficient|kernel image is invalid", False,
               "this GPU or its driver is not supported by the installed torch; use --gpus-per-worker 0 or update"),
    KnownError("device-side assert|illegal memory access|misaligned address|illegal instruction", False, BUG),
    # gloo and torch's store
    KnownError(r"processgroupgloo.{0,60}(support|invalid|expect)|gloo.{0,60}(not support|invalid)", False, BUG),
    KnownError(r"connection (closed|reset|refused|timed out)|broken pipe|socket timeout|no route to host", True,
               CONNECTION),
    KnownError(r"gloo.*(timed out|timeout|pair|read error|write error)|timed out waiting \d+ ?ms", True, CONNECTION),
    KnownError(r"(client socket|store|wait).{0,20}(has )?timed? ?out|wait timeout after \d+", True, CONNECTION),
    KnownError("address already in use|eaddrinuse", True, "a port that the workers chose was in use"),
    # operating system
    KnownError("can't start new thread|cannot allocate memory|too many open files", True,
               "the machine has no more processes, memory or open files to give"),
    KnownError("insufficient shared memory|out of shared memory", False,
               "the shared memory /dev/shm is too small for the data loader; give the container more of it"),
    KnownError(r"dataloader worker.{0,60}(killed|exited unexpectedly|died|crashed)", True,
               "a process that loads images was killed"),
    KnownError("stale file handle|input/output error|transport endpoint is not connected|remote i/o", True,
               "the storage did not answer"),
    # whatever else the communication of the workers reports
    KnownError(r"\bnccl\b|ncclcomm|\bgloo\b", True, CONNECTION),
)  # fmt: skip


def infrastructure_error(error: BaseException) -> TrainerError | None:
    """Return what an error of a library means, None for an unknown one, which counts as a fault of the run.

    Returns:
        An InfrastructureError if another attempt may succeed, another TrainerError if not. Its text is one line.
    """
    for cause in reversed(list(causes(error))):
        if not _is_of_a_library(cause):
            continue
        if (known := known_error(str(cause))) is not None:
            return InfrastructureError(known.text) if known.retry else TrainerError(known.text)
        if isinstance(cause, OSError) and cause.errno in INFRASTRUCTURE_ERRNOS:
            return InfrastructureError(fault_text(cause))
        if isinstance(cause, ray.exceptions.RayError | RayTrainError):
            return InfrastructureError(f"Ray lost a worker or a node ({type(cause).__name__})")
    return None


def _is_of_a_library(error: BaseException) -> bool:
    """Whether an error can be of Ray, NCCL, CUDA, gloo or the system: other types are errors of a program's own."""
    if isinstance(error, ray.exceptions.RayTaskError | UserExceptionWithTraceback):
        return False  # each only wraps an error that was raised in a worker
    types = (RuntimeError, ray.exceptions.RayError, RayTrainError, ConnectionError, TimeoutError)
    if isinstance(error, OSError) and not isinstance(error, types):
        return error.errno in INFRASTRUCTURE_ERRNOS
    return isinstance(error, types) or type(error) is Exception  # Ray's node raises bare Exception


def known_error(message: str) -> KnownError | None:
    """Return the first row of `TABLE` that a message matches, None if there is none."""
    return next((row for row in TABLE if re.search(row.pattern, message, re.IGNORECASE | re.DOTALL)), None)
