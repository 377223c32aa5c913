"""Errors that Ray, NCCL, CUDA, gloo and the system really raise, by whether another attempt may succeed."""

import errno
import os

import torch
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "
RETRIED = [
    Exception(
        "The current node timed out during startup. This could happen because some of the raylet failed to startup or "
        "the GCS has become overloaded."
    ),
    WorkerGroupStartupTimeoutError(2),
    ActorDiedError(),
    NodeDiedError("The node has died."),
    WorkerCrashedError(),
    OutOfMemoryError("Task was killed due to the node running low on memory."),
    ConnectionError("Could not find any running Ray instance. Please specify the one to connect to."),
    RuntimeError("Failed to connect to GCS at address 10.0.0.1:6379 within 60 seconds."),
    RuntimeError(
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
        "Cuda failure 'uncorrectable ECC error encountered'"
    ),
    RuntimeError(
        NCCL
        + "remote process exited or there was a network error, NCCL version 2.27.3\nncclRemoteError: A call failed "
        "possibly due to a network error or a remote process exiting prematurely."
    ),
    RuntimeError(
        NCCL + "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error."
    ),
    RuntimeError(
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1, "
        "NumelOut=1, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
    ),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be ...", 214),
    torch.AcceleratorError("CUDA error: unspecified launch failure", 719),
    torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 46),
    RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"),
    RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:40112"),
    RuntimeError(GLOO + "Read error [10.0.0.2]:1812: Connection reset by peer"),
    RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv "
        "operation to complete"
    ),
    RuntimeError(GLOO + "Application timeout caused pair closure"),
    torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//0"),
    torch.distributed.DistNetworkError(
        "The client socket has timed out after 300000ms while trying to connect to (10.0.0.1, 33219)."
    ),
    torch.distributed.DistNetworkError(
        "The server socket has failed to listen on any local network address. port: 29500, code: -98, name: "
        "EADDRINUSE, message: address already in use"
    ),
    RuntimeError("can't start new thread"),
    RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. "),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)),
    ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
    TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
]
NOT_RETRIED = [
    RuntimeError(
        NCCL + "invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.3\nncclInvalidUsage: This "
        "usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both "
        "on CUDA device 1b000"
    ),
    RuntimeError(
        "Failed to initialize NCCL communicator: invalid usage (run with NCCL_DEBUG=WARN for details)\n"
        "NCCL Last Error: Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1"
    ),
    RuntimeError(NCCL + "invalid argument, NCCL version 2.27.3\nncclInvalidArgument: Invalid value for an argument."),
    RuntimeError(
        NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("Distributed package doesn't have NCCL built in"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ...", 2),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device", 209),
    RuntimeError("CUDA error: CUDA driver version is insufficient for CUDA runtime version"),
    RuntimeError("ProcessGroupGloo does not support ReduceOp.PREMUL_SUM"),
    RuntimeError(
        "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are "
        "out of shared memory. Please try to raise your shared memory limit."
    ),
]
UNKNOWN = [
    ValueError("connection closed by peer"),
    KeyError("nccl"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/data/gloo/index.json"),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/nccl.tar"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
    AssertionError(),
]
