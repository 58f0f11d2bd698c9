"""Pages of one file: what a browser shows from a disk, without a server and without the net.

    files.write_text(folder / "index.html", page.pieces("results", data, entries))

The data go into the page as JSON, and its scripts make texts of them, never markup: whatever a file's name holds, it is
shown as it is. Images are named by paths relative to the page.
"""

import html
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
# the scripts of each page, in their order
SCRIPTS = {"results": ("viewer.js", "results.js"), "study": ("viewer.js", "study.js")}
MOST_IMAGES = 20_000  # on a page: a longer list would take a browser seconds to open
# Nothing is fetched from anywhere: images beside the page, and what stands in it. A file's page has no origin, so that
# 'self' would not cover its neighbours.
POLICY = "default-src 'none'; img-src file: data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def fill(name: str, data: dict) -> bytes:
    """The page `name`, one of SCRIPTS, with its data. data: anything that JSON holds; "title" becomes the page's."""
    return "".join(_pieces(name, data, [as_json(data)])).encode()


def pieces(name: str, data: dict, images: Iterable[dict]) -> Iterator[str]:
    """The page `name`, piece by piece, with its data and, as data["images"], what it says of each image.

    images: taken one by one and not kept, so that memory does not grow with their number.
    """
    return _pieces(name, data, _with_images(data, images))


def _with_images(data: dict, images: Iterable[dict]) -> Iterator[str]:
    """Pieces of the JSON of {**data, "images": [...]}."""
    yield as_json(data).removesuffix("}")
    separator = ',"images":['
    for image in images:
        yield separator + as_json(image)
        separator = ","
    # of no image the list has not begun
    yield "]}" if separator == "," else f"{separator}]}}"


def _pieces(name: str, data: dict, data_json: Iterable[str]) -> Iterator[str]:
    """The page's text, piece by piece. data_json: pieces of the JSON that it holds."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    yield "<!DOCTYPE html>\n"
    yield '<html lang="en">\n'
    yield '<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{html.escape(str(data.get('title', name)))}</title>\n"
    yield f"<style>\n{style}</style>\n"
    yield "<body>\n"
    yield (HERE / f"{name}.html").read_text(encoding="utf-8") + "\n"
    yield '<script type="application/json" id="data">'
    yield from data_json
    yield "</script>\n"
    # one script each, in strict mode by its first line
    for script in SCRIPTS[name]:
        source = (HERE / script).read_text(encoding="utf-8")
        yield f'<script>\n"use strict";\n{source}</script>\n'
    yield "</body>\n"
    yield "</html>\n"


def as_json(data) -> str:
    """JSON that can stand inside a script element; null for numbers that JSON has not."""
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Inside a string each of these may be an escape: "</script>" and "<!--" would end or swallow the element.
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def score(key: str, label: str, scale: float, better: str) -> dict:
    """What the page of results says of a score. scale: what its values are multiplied by; better: "larger", "smaller"
    or ""."""
    return {"key": key, "label": label, "scale": scale, "better": better}


def link(path: str | Path) -> str:
    """A relative path as an address: letters that mean something there are written as %XX, slashes stay."""
    return quote(Path(path).as_posix())


def _finite(tree):
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
