"""Processes that prepare data, or this one where there is little to do.

A pool's processes end at once when the one that started them dies or gives up, whatever they are doing: the files that
they were writing have no name yet that anyone reads.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import c_byte
from dataclasses import dataclass
from typing import Any

from training.errors import DataError

_FEWEST_BYTES = 32 * 2**20
"""Of text, below which starting processes takes longer than they save: a second each, at some MB/s."""
_POLL_SECONDS = 0.1


class WorkerDied(DataError):
    """A process that prepared data ended by itself; what is finished is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A call, which does nothing if its result is there already."""

    function: Callable[[Any, Callable[[], None]], None]
    """Of a module that can be imported; its second argument it calls again and again."""
    argument: Any
    num_bytes: int
    """Of text that it works on."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(work: Sequence[Work], *, num_workers: int, keep_alive: Callable[[int], None]) -> None:
    """Return when all is done, in any order and the largest first.

    Args:
        work: what is to be done.
        num_workers: processes that may be used.
        keep_alive: is called again and again, with the bytes that were finished since; may raise to end everything.

    Raises:
        WorkerDied: a process ended by itself.
    """
    largest_first = sorted(work, key=lambda one: -one.num_bytes)
    num_workers = min(num_workers, len(work))
    if num_workers < 2 or sum(one.num_bytes for one in work) < _FEWEST_BYTES:
        for one in largest_first:
            one.function(one.argument, lambda: keep_alive(0))
            keep_alive(one.num_bytes)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue(c_byte, 0)
    # Of fewer processes than cores each takes several: the tokenizer's threads.
    threads = max(1, available_cores() // num_workers)
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(stop, threads))
    try:
        _run_in(pool, largest_first, keep_alive)
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a process that prepared data died, most likely for want of memory\n"
            "  -> run the same command again, what is finished is kept; data.num_workers=1 or a smaller "
            "data.shard_bytes takes less memory"
        ) from error
    except BaseException:
        stop.value = 1
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run_in(pool: ProcessPoolExecutor, work: Sequence[Work], keep_alive: Callable[[int], None]) -> None:
    pending: dict[Future[None], Work] = {pool.submit(one.function, one.argument, _nothing): one for one in work}
    while pending:
        done, _ = wait(pending, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
        keep_alive(sum(pending[future].num_bytes for future in done))
        for future in done:
            del pending[future]
            future.result()


def _nothing() -> None:
    pass


def _begin(stop: Any, threads: int) -> None:
    """Set a new process up: its threads, and what ends it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it comes from a terminal to all; the first process ends the others
    threading.Thread(target=_watch, args=(stop,), name="watch", daemon=True).start()


def _watch(stop: Any) -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive() and not stop.value:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
