"""Data as scripts: a page opened from disk may load nothing else. Safe whatever they hold."""

from __future__ import annotations

import json
from typing import Any

#: What could end a script element or begin a comment in it, were the script ever put into a page.
_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&'"})


def as_script(name: str, value: Any) -> str:
    """A script, pure ASCII, that hands the value to the page under this name.

    The value travels as a string for JSON.parse: as a literal, a key named __proto__ would have a meaning.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"capflow.data.take({_literal(name)}, JSON.parse({_literal(text)}));\n"


def _literal(text: str) -> str:
    return json.dumps(text).translate(_ESCAPED)
