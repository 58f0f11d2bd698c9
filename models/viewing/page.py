"""Pages of one file: what a browser shows from a disk, without a server and without the net.

    images.write_file(folder / "index.html", page.fill("results", data))

The data go into the page as JSON, and its scripts make texts of them, never markup: whatever a file's name holds, it is
shown as it is. Images are named by paths relative to the page.
"""

import html
import json
import math
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
# the scripts of each page, in their order
SCRIPTS = {"results": ("viewer.js", "results.js"), "study": ("viewer.js", "study.js")}
# Nothing is fetched from anywhere: images beside the page, and what stands in it. A file's page has no origin, so that
# 'self' would not cover its neighbours.
POLICY = "default-src 'none'; img-src file: data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def fill(name: str, data: dict) -> bytes:
    """The page `name`, one of SCRIPTS, with its data. data: anything that JSON holds; "title" becomes the page's."""
    scripts = [(HERE / script).read_text(encoding="utf-8") for script in SCRIPTS[name]]
    pieces = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(str(data.get('title', name)))}</title>",
        f"<style>\n{(HERE / 'style.css').read_text(encoding='utf-8')}</style>",
        "<body>",
        (HERE / f"{name}.html").read_text(encoding="utf-8"),
        f'<script type="application/json" id="data">{as_json(data)}</script>',
        # one script each, in strict mode by its first line
        *(f'<script>\n"use strict";\n{script}</script>' for script in scripts),
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(pieces).encode()


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
