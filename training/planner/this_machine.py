"""What this machine's CPU does, measured in a second: the device and the links of `cluster=local`. No torch.

A profile of a cluster has data-sheet figures; of a laptop nobody has them at hand.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from training.config.cluster_schema import NetworkConfig
from training.config.schema import Launcher, RunConfig

_MATRIX_SIZE = 1024
_COPY_BYTES = 2**25
_SOCKET_BYTES = 2**24
_ROUNDS = 3


def with_this_machine(config: RunConfig) -> RunConfig:
    """Return the config with what its cluster does not say of a CPU measured here; of other devices or hosts unchanged.

    Rates are of one rank when all ranks of a node compute at once. Between ranks it is the speed of a local socket,
    which gloo's transfers go through.
    """
    cluster, accelerator = config.cluster, config.cluster.accelerator
    if accelerator.device != "cpu" or cluster.launcher is not Launcher.local:
        return config  # of other hosts this one knows nothing
    cores = len(os.sched_getaffinity(0))
    share = min(1.0, cores / cluster.processes_per_node)
    peak, bandwidth = accelerator.peak_flops_per_second, accelerator.memory_bytes_per_second
    accelerator = replace(
        accelerator,
        peak_flops_per_second=peak or core_flops_per_second(cores) * share,
        memory_bytes_per_second=bandwidth or copied_bytes_per_second() / cluster.processes_per_node,
    )
    network = cluster.network
    if network is None:
        speed = socket_bytes_per_second() * share
        network = NetworkConfig(node_bytes_per_second=speed, cluster_bytes_per_second=speed)
    return replace(config, cluster=replace(cluster, accelerator=accelerator, network=network))


def core_flops_per_second(num_cores: int) -> float:
    """Return what one core reaches in a float32 matrix product, all cores at work."""
    left = np.ones((_MATRIX_SIZE, _MATRIX_SIZE), dtype=np.float32)
    right, product = np.ones_like(left), np.empty_like(left)
    seconds = _least_seconds(lambda: np.matmul(left, right, out=product))
    return 2 * _MATRIX_SIZE**3 / seconds / num_cores


def copied_bytes_per_second() -> float:
    """Return the memory traffic of a copy, read and written, by one thread."""
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    return 2 * _COPY_BYTES / _least_seconds(lambda: np.copyto(target, source))


def socket_bytes_per_second() -> float:
    """Return the speed of a local socket from one thread to another."""
    content = bytes(_SOCKET_BYTES)

    def pass_through() -> None:
        sender, receiver = socket.socketpair()
        with sender, receiver:
            thread = threading.Thread(target=sender.sendall, args=(content,))
            thread.start()
            buffer, left = bytearray(2**20), _SOCKET_BYTES
            while left:
                left -= receiver.recv_into(buffer)
            thread.join()

    return _SOCKET_BYTES / _least_seconds(pass_through)


def _least_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
