"""Writes docs/api.md from the signatures and docstrings of what `import kerf` offers.

Launch:    python scripts/maintain/api.py
Hardware:  any; seconds.
Expected:  docs/api.md; nothing changes in it unless a door has.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import kerf

FILE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
HEAD = """\
# What `import kerf` offers

Written by `python scripts/maintain/api.py` from the docstrings.
"""


def text() -> str:
    """The whole page."""
    doors = {name: getattr(kerf, name) for name in kerf.__all__}
    functions = [n for n, v in doors.items() if not inspect.isclass(v)]
    classes = [n for n, v in doors.items() if inspect.isclass(v) and not issubclass(v, Exception)]
    errors = [n for n, v in doors.items() if inspect.isclass(v) and issubclass(v, Exception)]
    parts = [HEAD, *(function(f"kerf.{n}", doors[n]) for n in functions)]
    parts += [of_class(f"kerf.{n}", doors[n]) for n in classes]
    parts += [of_class(c.__name__, c) for c in given_out([doors[n] for n in (*functions, *classes)])]
    parts.append("## Exceptions\n\n| | |\n|-|-|")
    parts[-1] += "".join(f"\n| `kerf.{n}` ({bases(doors[n])}) | {said(doors[n])} |" for n in errors)
    return "\n".join(part.rstrip() + "\n" for part in parts)


def function(name: str, value) -> str:
    return f"## {name}\n\n{signature(name, value)}\n{paragraphs(value)}\n"


def of_class(name: str, value: type) -> str:
    """The class with its fields, public methods and properties."""
    lines = [f"## {name}\n\n{paragraphs(value)}\n"]
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if not f.name.startswith("_")]
        lines.append("Fields: " + ", ".join(f"`{f.name}: {annotation(f.type)}`" for f in fields) + ".\n")
    table = ["| | |\n|-|-|"]
    for key, member in vars(value).items():
        if key.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            table.append(f"| `.{key}` | {said(member)} |")
        elif inspect.isfunction(member):
            names = [p for p in inspect.signature(member).parameters if p != "self"]
            table.append(f"| `.{key}({', '.join(names)})` | {said(member)} |")
    return "\n".join([*lines, *(table if len(table) > 1 else [])])


def given_out(doors: list) -> list[type]:
    """The classes that doors return and hold, and theirs, which are no doors themselves, in the order of meeting."""
    seen = [*doors]
    for value in seen:  # grows
        hints = typing.get_type_hints(value)
        named = hints.values() if inspect.isclass(value) else [hints.get("return")]
        seen += [c for c in dict.fromkeys(c for hint in named for c in classes_in(hint)) if c not in seen]
    return seen[len(doors) :]


def classes_in(hint) -> Iterator[type]:
    """kerf's own, but for dictionaries with known keys: those are files (docs/formats.md)."""
    for part in typing.get_args(hint):
        yield from classes_in(part)
    if inspect.isclass(hint) and hint.__module__.startswith("kerf.") and not typing.is_typeddict(hint):
        yield hint


def signature(name: str, value) -> str:
    """A parameter a line, where there are several."""
    of = inspect.signature(value)
    rest = "" if of.return_annotation is inspect.Signature.empty else f" -> {annotation(of.return_annotation)}"
    lines, star = [], False
    for p in of.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not star:
            lines, star = [*lines, "*"], True
        kind = "" if p.annotation is p.empty else f": {annotation(p.annotation)}"
        lines.append(f"{p.name}{kind}" + ("" if p.default is p.empty else f" = {default(p.default)}"))
    inside = "\n".join(f"    {line}," for line in lines)
    return f"```\n{name}(\n{inside}\n){rest}\n```\n"


def annotation(value) -> str:
    """Without the modules that its names are in."""
    return re.sub(r"(?:\w+\.)+(?=\w)", "", value if isinstance(value, str) else inspect.formatannotation(value))


def default(value) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def paragraphs(value) -> str:
    return inspect.getdoc(value) or ""


def said(value) -> str:
    return " ".join(paragraphs(value).split()).replace("|", "\\|")


def bases(value: type) -> str:
    return ", ".join(base.__name__ for base in value.__bases__)


if __name__ == "__main__":
    import _page

    raise SystemExit(_page.written("api", __doc__, FILE, text))
