"""The templates of this folder, and how pages print numbers."""

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from kerf.deploy.report.figures import number

DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))


def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("kerf.deploy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "size": size, "percent": percent, "shape": shape, "settings": settings}
    return made


def neutral(text: str) -> str:
    """Without marks that turn the direction of what follows them: with one in its name a file looks like another."""
    return text.translate(dict.fromkeys(DIRECTIONS))


def size(count: float) -> str:
    """Bytes with a decimal prefix: 13.9 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count)}\N{NO-BREAK SPACE}{unit}"
        count /= 1000
    return f"{number(count)}\N{NO-BREAK SPACE}GB"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def shape(value: object) -> str:
    """[64, 32, 3, 3] as 64×32×3×3; text as it is."""
    if value is None:
        return "–"
    return "×".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def settings(config: object) -> str:
    """{"tile": 6, "order": "ow"} as tile=6 order=ow; text as it is."""
    return " ".join(f"{k}={v}" for k, v in config.items()) if isinstance(config, Mapping) else str(config or "")
