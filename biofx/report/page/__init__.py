"""The page of a history: one file that asks nothing of any server. Loads no torch."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

SCRIPTS = ("data.js", "charts.js", "tree.js", "panels.js", "lives.js", "main.js")


def page(content: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        content: as of `History.to_dict` or `file.read`. Names in it are shown as text, whatever
            they hold.
    """
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "\n})();"
    style = _asset("page.css")
    # Nothing but this script and this style runs, and nothing is asked of any server.
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_hash(script)}'; "
        f"style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "DATA": embedded(content), "SCRIPT": script}
    text = _asset("page.html")
    first, *rest = text.split("{{")
    found = [first]
    for piece in rest:
        name, _, after = piece.partition("}}")
        found += [parts[name], after]
    return "".join(found)


def embedded(content: Any) -> str:
    """JSON that can stand inside a script element: no `<` of a name can end it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
