"""Where names go beside the dots of a figure: what does not overlap on the narrowest page overlaps on none.

Places are worked out for a figure NARROW pixels wide. Dots are at percentages of the width and names at pixels from
their dots, so a wider page only moves names apart.
"""

from collections.abc import Sequence

NARROW = 320  # pixels: a figure on a phone
LETTER = 7.6  # of the 12 px text, the widest of the usual sans-serif fonts, on average
LINE = 14  # height of a name, pixels
DOT, GAP = 7, 10  # radius with its rim; from a dot's middle to its name
LONGEST = 26  # letters

Box = tuple[float, float, float, float]  # left, right, top, bottom
Spot = tuple[str, int, float, str]  # text, dx, y of its base line, css class of its anchor


def width(text: str) -> float:
    """Of a line of small text, pixels."""
    return LETTER * len(text)


def place(dots: Sequence[tuple[float, float]], names: Sequence[str], gutter: float, height: float) -> list[Spot | None]:
    """A spot for the name of each dot (percent of the width, pixels from the top), earlier first; None without room.

    Names stay right of `gutter` percent and within `height` pixels, and off all dots and one another.
    """
    at = [(x * NARROW / 100, y) for x, y in dots]
    taken: list[Box] = [(x - DOT, x + DOT, y - DOT, y + DOT) for x, y in at]
    found: list[Spot | None] = []
    for (x, y), name in zip(at, names, strict=True):
        text = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        for spot, box in _spots(x, y, text):
            inside = box[0] >= gutter * NARROW / 100 and box[1] <= NARROW and box[2] >= 0 and box[3] <= height
            if text and inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(spot)
                break
        else:
            found.append(None)
    return found


def _spots(x: float, y: float, text: str) -> list[tuple[Spot, Box]]:
    """Right or left of the dot, or a line or two above or below that."""
    wide, spots = width(text), []
    for shift in (0, LINE, -LINE, 2 * LINE, -2 * LINE):
        base = y + 4 + shift
        top, bottom = base - LINE + 3, base + 3
        spots.append(((text, GAP, base, "start"), (x + GAP, x + GAP + wide, top, bottom)))
        spots.append(((text, -GAP, base, "end"), (x - GAP - wide, x - GAP, top, bottom)))
    return spots


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
