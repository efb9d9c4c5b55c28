"""What benchmarks over networks and shares of zero blocks have in common: flags, rows as they come, what is stored."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from kerf.deploy.measure.environment import environment

STORED = ("N", "threads", "batch", "trials", "seconds")


def flags(
    text: str, folder: str, archs: Sequence[str], sparsities: Sequence[float], seconds: float
) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, default=Path(folder))
    p.add_argument("--archs", nargs="+", default=archs)
    p.add_argument("--sparsities", nargs="+", type=float, default=sparsities)
    p.add_argument("--N", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--trials", type=int, default=0, help="configurations measured per network; 0 = defaults")
    p.add_argument("--seconds", type=float, default=seconds, help="length of each race")
    return p.parse_args()


def rows(a: argparse.Namespace, head: str, measure: Callable[..., dict], line: Callable[[dict], str]) -> list[dict]:
    """Measured, printed, and kept in results.json as they come."""
    found = []
    print(head, flush=True)
    for arch in a.archs:
        for sparsity in a.sparsities:
            found.append({"arch": arch, "sparsity": sparsity, **measure(arch, sparsity, a)})
            print(line(found[-1]), flush=True)
            stored = {**{k: getattr(a, k) for k in STORED}, "rows": found, **environment()}
            (a.folder / "results.json").write_text(json.dumps(stored, indent=1))
    return found
