"""Writes docs/api.md from the signatures and docstrings of what `import kerf` offers.

Launch:    python scripts/maintain/api.py
Hardware:  any; seconds.
Expected:  docs/api.md; nothing changes in it unless a door has.
"""

import inspect
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
    parts = [HEAD, *(function(f"kerf.{n}", doors[n]) for n in functions), *(of_class(n, doors[n]) for n in classes)]
    parts.append("## Exceptions\n\n| | |\n|-|-|")
    parts[-1] += "".join(f"\n| `kerf.{n}` ({bases(doors[n])}) | {said(doors[n])} |" for n in errors)
    return "\n".join(part.rstrip() + "\n" for part in parts)


def function(name: str, value) -> str:
    return f"## {name}\n\n{signature(name, value)}\n{paragraphs(value)}\n"


def of_class(name: str, value: type) -> str:
    """The class, its fields as its docstring has them, its public methods and properties."""
    lines = [f"## kerf.{name}\n\n{paragraphs(value)}\n\n| | |\n|-|-|"]
    for key, member in vars(value).items():
        if key.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            lines.append(f"| `.{key}` | {said(member)} |")
        elif inspect.isfunction(member):
            names = [p for p in inspect.signature(member).parameters if p != "self"]
            lines.append(f"| `.{key}({', '.join(names)})` | {said(member)} |")
    return "\n".join(lines)


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
    shown = value if isinstance(value, str) else inspect.formatannotation(value)
    return shown.replace("collections.abc.", "").replace("pathlib.", "").replace("kerf.compress.pruning.", "")


def default(value) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def paragraphs(value) -> str:
    return inspect.getdoc(value) or ""


def said(value) -> str:
    return " ".join(paragraphs(value).split()).replace("|", "\\|")


def bases(value: type) -> str:
    return ", ".join(base.__name__ for base in value.__bases__)


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
