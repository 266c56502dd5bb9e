"""Takes passwords out of what people read."""

from __future__ import annotations

import re
import sys
from traceback import format_exception
from types import TracebackType

#: What stands between a URL's user and its host. A password that holds an @ is hidden to its last one.
_PASSWORD = re.compile(r"""(://[^:/@\s"']*:)[^\s"'<>]*@""")


def redacted(text: str) -> str:
    """The text with `***` for the password of every URL in it."""
    return _PASSWORD.sub(r"\1***@", text)


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` does, without the passwords."""
    print(redacted("".join(format_exception(kind, error, trace))), end="", file=sys.stderr)
