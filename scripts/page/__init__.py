"""The page of runs: one HTML file that needs no network, with the data of the runs inside.

    index.html     the frame; *.css and *.js of this folder are put into it, in the order of STYLES and SCRIPTS
    uplot.*        uPlot 1.6.32 (MIT, uplot.LICENSE.txt), which draws the curves

Texts of agents and environments are data: compressed JSON in base64. The scripts insert them as text, never as HTML. A
content security policy allows only these scripts and styles, by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
STYLES = ("uplot.css", "page.css")
SCRIPTS = (
    "uplot.js", "base.js", "data.js", "runs.js", "episodes.js", "steps.js", "episode.js", "group.js", "pair.js",
    "board.js", "main.js",
)  # fmt: skip


def pack(data: dict[str, Any]) -> str:
    """The data as text for the page: base64 of compressed JSON. Equal data give equal text."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def html(packed: str, stamp: str = "") -> str:
    """The page with its data. With a `stamp` (the version of the data), it asks its server for newer data."""
    style = "\n".join(_read(name) for name in STYLES)
    script = "\n".join(f"// {name}\n{_read(name)}" for name in SCRIPTS)
    server = "'self'" if stamp else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        f"img-src data:; connect-src {server}; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": packed, "STAMP": stamp}
    page = _read("index.html")
    before, *rest = page.split("{{")
    return before + "".join(parts[name] + text for name, text in (part.split("}}", 1) for part in rest))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
