"""Headless Chromium for the browser tests and the screenshots."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
)
_DRIVERS = ("chromedriver", "/usr/lib/chromium/chromedriver")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class NoBrowser(Exception):
    """Chromium is not installed."""


def _find(names: tuple[str, ...]) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise NoBrowser(f"{names[0]} is not installed; on Debian, deploy/setup-browser.sh installs it")
    return found


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start a browser with an empty profile. Raises NoBrowser with the remedy."""
    browser, driver = _find(_BROWSERS), _find(_DRIVERS)
    with tempfile.TemporaryDirectory(prefix="capflow-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        started = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield started
        finally:
            started.quit()


def emulate_screen(
    browser: webdriver.Chrome,
    width: int,
    height: int,
    *,
    dark: bool = False,
    phone: bool = False,
    scale: float = 1,
) -> None:
    """Emulate a screen of this size in CSS pixels, and its reader's preferences."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})


def open_file(browser: webdriver.Chrome, page: Path, fragment: str = "") -> None:
    """Open a page from disk; reload it even where only the fragment differs."""
    browser.get("about:blank")
    browser.get(page.as_uri() + fragment)
