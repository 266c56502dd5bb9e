"""Flags that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def processes(variable: str, what: str) -> Decorator:
    """How many of these are dealt with at a time, each in a process of its own."""
    return click.option(
        "--processes",
        envvar=variable,
        default=min(4, os.cpu_count() or 1),
        type=click.IntRange(1, 256),
        help=f"{what} at a time.  [default: one per CPU, at most 4]",
        show_envvar=True,
    )


def prices() -> Decorator:
    return click.option(
        "--prices",
        envvar="CAPFLOW_PRICES",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Price table (YAML) that is laid over the one that is shipped.  [default: that one alone]",
        show_envvar=True,
    )
