"""What a flag is: one row, from which its parsing, its place in --help, its form in config.json and its checks come."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from kerf.errors import BadInput


@dataclass(frozen=True)
class Range:
    """Which numbers a flag takes, and how an error says so."""

    fits: Callable[[float], bool]
    expected: str


def least(value: int) -> Range:
    return Range(lambda given: given >= value and math.isfinite(given), f"{value} or more")


def most(value: int) -> Range:
    return Range(lambda given: given <= value, f"at most {value}")


def below(value: int) -> Range:
    return Range(lambda given: given < value, f"less than {value}")


LARGE = 10**18  # torch's numbers have 64 bits
POSITIVE = Range(lambda given: given > 0 and math.isfinite(given), "a positive number")


@dataclass(frozen=True)
class Flag:
    name: str  # of the field, in config.json, and with -- in front
    kind: type  # of the value, or of each where there are `many`; bool: --name and --no-name
    many: bool
    group: str  # of --help
    help: str
    default: Any = None
    by_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # data set -> the default there
    decided: bool = False  # other flags decide the default: Args has to be given a value
    otherwise: str = ""  # a default in words
    also: tuple[str, ...] = ()  # other spellings
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    ranges: tuple[Range, ...] = ()
    channels: bool = False  # for methods that cut channels, and for no others
    free: bool = False  # may differ from that of the run which is resumed: no step of it changes
    saved: bool = True  # in config.json; what only changes how a run speaks is not

    @property
    def spellings(self) -> tuple[str, ...]:
        return (f"--{self.name}", *self.also)

    @property
    def expected(self) -> str:
        """What values it takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        one = {int: "a whole number", float: "a number", bool: "true or false"}.get(self.kind, "text")
        return f"a list, each {one}" if self.many else one

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        common: dict[str, Any] = {"dest": self.name, "help": self._described().replace("%", "%%")}
        if self.kind is bool:
            parser.add_argument(*self.spellings, action=argparse.BooleanOptionalAction, **common)
            return
        common["choices"] = self.choices or None
        common["nargs"] = "+" if self.many else None
        if not self.choices:
            common["metavar"] = self.metavar or {int: "N", float: "X"}.get(self.kind, "NAME")
        parser.add_argument(*self.spellings, type=self.kind, **common)

    def _described(self) -> str:
        text = f"channel methods: {self.help}" if self.channels else self.help
        plain = "" if self.default is None or self.default is False else as_text(self.default)
        by_data = [f"{data_set} {as_text(value)}" for data_set, value in self.by_data.items()]
        default = "; ".join(filter(None, [plain, self.otherwise, *by_data]))
        return f"{text} (default {default})" if default else text

    def check(self, value: Any) -> None:
        """Raises BadInput for a number out of range, or one that no library takes."""
        for allowed in self.ranges:
            if value is not None and not allowed.fits(value):
                raise BadInput(f"--{self.name} is {value}: expected {allowed.expected}")
        numbers = value if self.many else (value,)
        if self.kind is int and any(number is not None and not -LARGE < number < LARGE for number in numbers):
            raise BadInput(f"--{self.name} is {as_text(value)}: expected a number of at most 18 digits")


def flag(group: str, help: str, **row: Any) -> Any:
    """A field of Args and its row."""
    row["decided"] = "by_data" in row or row.get("decided", False)
    default = dataclasses.MISSING if row["decided"] else row.get("default")
    return dataclasses.field(default=default, metadata={"group": group, "help": help, **row})


def rows(table: type) -> tuple[Flag, ...]:
    """The flags of a dataclass whose fields are all made by `flag`."""
    return tuple(Flag(f.name, *_kind(f.type), **f.metadata) for f in dataclasses.fields(table))


def _kind(hint: Any) -> tuple[type, bool]:
    """int -> (int, one of them); float | None -> (float, one); tuple[int, ...] -> (int, many)."""
    if isinstance(hint, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return (get_args(hint)[0], True) if get_origin(hint) is tuple else (hint, False)


def as_json(value: Any) -> Any:
    """A value of Args as JSON has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def as_text(value: Any) -> str:
    """A value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def typed(values: Mapping[str, Any]) -> list[str]:
    """Names and values, as in JSON, as the flags that a person types for them."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            words.append(f"--{name}={value}")
    return words
