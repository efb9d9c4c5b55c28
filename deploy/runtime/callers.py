"""Who calls code that shares its loops among workers: TVM keeps a pool of them for every thread that has called it, and
frees none when that thread ends. So the first MOST threads call it themselves; for all others, of which a server may
start one for every request, it is called by threads that stay, as many as there are calls at once. Code for one thread
has no such loops, and whoever wants calls it. Behind a fork no thread that there was has workers: new ones, that stay,
have.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import tvm_ffi

MOST = 16
T = TypeVar("T")
_Job = tuple[int, Callable[[], Any], "Future[Any]"]
_idle: deque[SimpleQueue[_Job]] = deque()  # what threads that stay, and have nothing to do, wait for
_set = threading.local()  # how many workers the pool of a thread has
_pools = itertools.count()


def _forked() -> None:
    """Workers, and threads that stay, are not there any more."""
    global _set, _pools
    _idle.clear()
    _set, _pools = threading.local(), itertools.count(MOST)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_forked)


def call(function: Callable[[], T], workers: int) -> T:
    """``function()``, whose parallel loops ``workers`` share. What it raises is raised."""
    if hasattr(_set, "count") or next(_pools) < MOST:
        use_threads(workers)
        return function()
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_stay, args=(jobs,), daemon=True, name="kerf").start()
    done: Future[T] = Future()
    jobs.put((workers, function, done))
    try:
        return done.result()
    except BaseException:  # Ctrl-C too: until it is done it uses what the caller holds a lock on
        wait([done])
        raise


def _stay(jobs: SimpleQueue[_Job]) -> None:
    while True:
        workers, function, done = jobs.get()
        try:
            use_threads(workers)
            found = function()
        except BaseException as error:  # whatever it is, the caller gets it
            _idle.append(jobs)
            done.set_exception(error)
        else:
            _idle.append(jobs)
            done.set_result(found)
        del workers, function, done


def use_threads(count: int) -> None:
    """Share parallel loops of the calling thread's code among ``count`` workers."""
    if getattr(_set, "count", None) != count:
        # else TVM pins the calling thread to a core, for everything the program does afterwards
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        # else its pool has half as many workers as the machine has cores, on the assumption that these are hyperthreads
        os.environ.setdefault("TVM_NUM_THREADS", str(max(count, os.cpu_count() or 1)))
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, count)
        _set.count = count
