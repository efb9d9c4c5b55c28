"""The loop that keeps copies of chunks in flight, by cp.async, while earlier chunks are multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tvm.script import tirx as script
from tvm.tirx.script.builder import ir as T

from kerf.kernels.cuda.emit.store import ptx


class Pipelined(ABC):
    """A function being built that has ``stages`` of shared memory."""

    stages: int

    @abstractmethod
    def _locate(self, chunk) -> None:
        """Ask where the copies of a chunk come from; harmless behind the last chunk."""

    @abstractmethod
    def _fetch(self, chunk, stage) -> None:
        """Start the copies of the chunk that was located last."""

    @abstractmethod
    def _multiply(self, stage) -> None:
        """The product of what a stage holds."""

    def fill(self, begin, count) -> None:
        """Start the copies of the first of ``count`` chunks, from chunk ``begin`` on."""
        self._locate(begin)
        # not unrolled: a network's kernels run once each, and their code has to be read, too
        with T.serial(0, self.stages - 1, unroll=False) as stage:
            with T.If(count > stage), T.Then():
                self._fetch(begin + stage, stage)
            ptx("cp.async.commit_group")
            self._locate(begin + stage + 1)
            self._settle(stage)

    def advance(self, begin, count, i) -> None:
        """The i-th chunk's product, and the copies of the one that takes the stage of the one before."""
        ahead = self.stages - 1
        ptx("cp.async.wait_group", ahead - 1)
        T.evaluate(script.cuda.cta_sync())
        with T.If(i + ahead < count), T.Then():
            self._fetch(begin + i + ahead, (i + ahead) % self.stages)
        ptx("cp.async.commit_group")
        self._locate(begin + i + ahead + 1)  # asked for here, needed behind the product
        self._multiply(T.Bind(i % self.stages))
        self._settle((i + ahead) % self.stages)

    def _settle(self, stage) -> None:
        """Store what _fetch could not copy asynchronously, and loaded into registers: by default nothing. Behind the
        last chunk anything, into a stage that nobody reads.
        """
        return


def drain() -> None:
    """No copy is under way any more, and no thread still reads what was copied."""
    ptx("cp.async.wait_group", 0)
    T.evaluate(script.cuda.cta_sync())
