"""Opens a report or compare page in a headless Chromium, says what is wrong with its layout, and takes pictures of it.

Launch:    python scripts/maintain/screenshots.py runs/demo/report.html docs/report --height 2400
Hardware:  any; pip install '.[browser]', and a Chromium: the system's (apt install chromium), or that of
           playwright install chromium.
Expected:  docs/report-400.png and docs/report-1400.png, palette images of at most 300 KiB; no faults, exit code 0.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDTHS = (400, 1400)
MOST_BYTES = 300 * 1024
SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Of the page as it stands: boxes of every piece of text, of dots and of figures, without what its scrollers hide.
BOXES = """() => {
  const boxes = [];
  const clipped = (rect, element) => {
    let [l, t, r, b] = [rect.left, rect.top, rect.right, rect.bottom];
    for (let e = element; e; e = e.parentElement) {
      if (e !== document.documentElement && e !== document.body && getComputedStyle(e).overflowX !== "visible") {
        const box = e.getBoundingClientRect();
        [l, t, r, b] = [Math.max(l, box.left), Math.max(t, box.top), Math.min(r, box.right), Math.min(b, box.bottom)];
      }
    }
    return [l, t, r, b];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let owner = 0;
  for (let node; (node = walker.nextNode()); ) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("title, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    owner += 1;
    const svg = parent.closest("svg");
    const frame = svg && svg.getBoundingClientRect();
    for (const rect of range.getClientRects()) {
      const box = clipped(rect, svg ? svg.parentElement : parent);
      const cut = svg && (rect.left < frame.left - 1 || rect.right > frame.right + 1 || rect.top < frame.top - 2
        || rect.bottom > frame.bottom + 2);
      if (box[2] - box[0] > 0.5 && box[3] - box[1] > 0.5)
        boxes.push({kind: "text", owner, box, cut, says: node.data.trim().slice(0, 40)});
    }
  }
  for (const dot of document.querySelectorAll("svg circle")) {
    const r = dot.getBoundingClientRect();
    boxes.push({kind: "dot", owner: 0, box: [r.left, r.top, r.right, r.bottom], says: dot.textContent});
  }
  for (const figure of document.querySelectorAll("figure")) {
    const r = figure.getBoundingClientRect();
    boxes.push({kind: "figure", owner: 0, box: [r.left, r.top, r.right, r.bottom], says: figure.id});
  }
  return boxes;
}"""
EMPTY = """() => [...document.querySelectorAll("figure")].flatMap(figure => {
  const drawn = [...figure.querySelectorAll("svg, table")].filter(e => !e.parentElement.closest("svg"));
  const flat = drawn.filter(e => { const r = e.getBoundingClientRect(); return !(r.width > 1 && r.height > 1); });
  return drawn.length && !flat.length ? [] : [`figure ${figure.id} is empty`];
})"""


def chromium() -> str | None:
    """The system's browser; None leaves it to playwright's own."""
    return next((path for path in map(shutil.which, SYSTEM) if path), None)


@contextmanager
def browser() -> Iterator:
    """A headless Chromium. Raises ImportError without playwright, FileNotFoundError without a browser."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, which containers usually are
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            opened = playwright.chromium.launch(executable_path=chromium(), args=flags)
        except Error as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(
                f"no Chromium to open pages with ({reason}); playwright install chromium"
            ) from error
        yield opened
        opened.close()


@contextmanager
def opened(chrome, path: Path, width: int, scheme: str = "light") -> Iterator[tuple]:
    """(page, what its console and the network said) of a file at this width, in a "light" or "dark" scheme."""
    page, said = chrome.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    url = path.resolve().as_uri()
    page.on("request", lambda request: said.append(f"request: {request.url}") if request.url != url else None)
    page.goto(url)
    yield page, said
    page.close()


def faults(page) -> list[str]:
    """What is wrong with the layout of an open page: overflow, empty figures, text cut off or on top of something."""
    wide, room = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    found = [f"the page is {wide} px wide in a window of {room}"] if wide > room else []
    found += page.evaluate(EMPTY)
    boxes = page.evaluate(BOXES)
    found += [f'"{box["says"]}" is cut off by its figure' for box in boxes if box.get("cut")]
    boxes.sort(key=lambda box: box["box"][1])
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            if b["box"][1] > a["box"][3]:
                break
            if overlap(a, b):
                found.append(f'{a["kind"]} "{a["says"]}" and {b["kind"]} "{b["says"]}" overlap')
    return found


def overlap(a: dict, b: dict, tolerance: float = 2.0) -> bool:
    """Whether two boxes that must not meet do, by more than `tolerance` pixels (boxes of lines exceed their ink)."""
    kinds = {a["kind"], b["kind"]}
    if kinds in ({"dot"}, {"text", "figure"}, {"dot", "figure"}) or (kinds == {"text"} and a["owner"] == b["owner"]):
        return False
    (l, t, r, u), (m, s, q, v) = a["box"], b["box"]
    return min(r, q) - max(l, m) > tolerance and min(u, v) - max(t, s) > tolerance


def photograph(page, path: Path, height: int | None) -> int:
    """Writes the page's first `height` pixels, or all, in as many colours as MOST_BYTES allow; returns the bytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    if height:
        picture = picture.crop((0, 0, picture.width, min(height, picture.height)))
    for colours in (128, 64, 32, 16):
        content = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
        if content.tell() <= MOST_BYTES:
            path.write_bytes(content.getvalue())
            return content.tell()
    raise ValueError(f"{path}: {content.tell() / 1024:.0f} KiB in {colours} colours; give a smaller --height")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("page", type=Path, help="report.html or compare.html")
    p.add_argument("stem", type=Path, help="pictures are STEM-400.png and STEM-1400.png")
    p.add_argument("--height", type=int, help="only the first so many pixels; by default all")
    args = p.parse_args()
    code = 0
    try:
        with browser() as chrome:
            for width in WIDTHS:
                with opened(chrome, args.page, width) as (page, said):
                    for fault in [*said, *faults(page)]:
                        print(f"{width} px: {fault}")
                        code = 1
                    path = args.stem.with_name(f"{args.stem.name}-{width}.png")
                    print(f"{path}: {photograph(page, path, args.height) / 1024:.0f} KiB")
    except (ImportError, OSError, ValueError) as error:
        print(f"screenshots: error: {error}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    from kerf import console

    raise SystemExit(console.ended("screenshots", main))
