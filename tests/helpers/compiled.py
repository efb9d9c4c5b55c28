"""A file as kerf runs it, in this process, compared with ONNX Runtime: kerf's own pieces compiled, the rest in that."""

from pathlib import Path

from kerf.deploy.compiler import targets
from kerf.deploy.compiler.build import build
from kerf.deploy.frontend.convert import convert
from kerf.deploy.frontend.network import Network
from kerf.deploy.measure.record import RecordBook
from kerf.deploy.measure.verify import verify
from kerf.deploy.plans import pieces, steps
from kerf.deploy.runtime.session import Session

TARGET = targets.parse("native", 1)


def compiled(path: Path, **options) -> tuple[Network, Session]:
    """With kerf in every piece that it has functions for, whatever its speed."""
    network = pieces.able(convert(path, **options), TARGET, lambda _: None)
    built = build(network, TARGET, RecordBook()) if network.own else None
    return network, steps.session(network, built, 1)


def checked(path: Path, **options) -> list[str]:
    """Engines of the pieces, once the outputs were compared."""
    network, session = compiled(path, **options)
    engines = [piece.engine for piece in network.run_by]
    verify(session.run, path, network.inputs, dense=set(engines) != {"kerf"})
    return engines
