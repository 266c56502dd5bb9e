"""Take the pictures in docs/pictures: Flower during a run of the demo's data, and the report afterwards.

    python deploy/screenshots.py PLAN FOLDER

Services, worker, producer, Flower and browser are real; the captions come from deploy/demo/captions.yaml.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from capflow_tasks.fleet.embedded import Services
from capflow_tasks.settings import Settings
from deploy.browser import chromium, emulate_screen, open_file
from producer.services import services

_SCRIPTS = Path(sys.executable).parent
_DEMO = Path(__file__).parent / "demo"
_PATIENCE_SECONDS = 90
_MOST_BYTES = 250_000
#: The sample that is shown large.
_DETAIL = "#sample=8"
#: Tasks that have finished when Flower's picture is taken, so that it shows some that have not.
_FINISHED_TASKS = 7


@contextmanager
def running(command: str, *arguments: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the environment until the block ends."""
    with subprocess.Popen(
        [str(_SCRIPTS / command), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def save(browser: webdriver.Chrome, path: Path) -> None:
    """Save a screenshot; with fewer colours where it would be too large for a repository."""
    picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > _MOST_BYTES:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KB")


def wait_for(browser: webdriver.Chrome, script: str) -> None:
    """Wait until the script's expression is true in the page."""
    WebDriverWait(browser, _PATIENCE_SECONDS, 0.1).until(
        lambda page: page.execute_script(f"return Boolean({script})")
    )


def environment_of(reached: Services, home: Path) -> dict[str, str]:
    return {
        "CAPFLOW_DATABASE_URL": reached.database_url,
        "CAPFLOW_BROKER_URL": reached.broker_url,
        "CAPFLOW_HOME": str(home),
        "CAPFLOW_ENGINE": "narrator:build",
        "CAPFLOW_CONCURRENCY": "2",
        "PYTHONPATH": os.pathsep.join((str(_DEMO), str(_DEMO.parent.parent))),
    }


def finished_tasks(browser: webdriver.Chrome) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#tasks-table tbody tr")
    return [row.text for row in rows if "SUCCESS" in row.text]


def photograph_flower(browser: webdriver.Chrome, address: str, folder: Path) -> None:
    emulate_screen(browser, 1500, 860)
    while len(finished_tasks(browser)) < _FINISHED_TASKS:
        browser.get(f"{address}/tasks?limit=20")
        wait_for(browser, "document.querySelector('#tasks-table tbody tr')")
    save(browser, folder / "flower-tasks.png")
    emulate_screen(browser, 1500, 560)
    browser.get(f"{address}/workers")
    wait_for(browser, "document.querySelector('#workers-table tbody a')")
    save(browser, folder / "flower-workers.png")


def photograph_report(browser: webdriver.Chrome, page: Path, folder: Path) -> None:
    emulate_screen(browser, 1280, 1100)
    open_file(browser, page)
    wait_for(browser, "document.querySelector('.card')")
    browser.execute_script("document.getElementById('samples').scrollIntoView()")
    wait_for(browser, "[...document.images].slice(0, 15).every((image) => image.complete)")
    save(browser, folder / "report-gallery.png")
    emulate_screen(browser, 1280, 820)
    open_file(browser, page, _DETAIL)
    wait_for(browser, "document.querySelector('.pictures img')?.naturalWidth")
    save(browser, folder / "report-detail.png")


def take_pictures(plan: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="capflow-shots-", dir="/tmp")))
        home.chmod(0o755)
        reached = stack.enter_context(services(Settings(home=home, database_url=None, broker_url=None)))
        environment = environment_of(reached, home)
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        stack.enter_context(
            running("celery", "-A", "capflow_tasks", "flower", f"--port={port}", environment=environment)
        )
        browser = stack.enter_context(chromium())
        WebDriverWait(browser, _PATIENCE_SECONDS, 0.3).until(lambda _: answers(address))
        worker = ("-A", "capflow_tasks", "worker", "-Q", "gpu", "-n", "gpu0@%h")
        stack.enter_context(running("celery", *worker, environment=environment))
        produce = (str(plan), "--output", str(home / "captions"), "--batch-size", "4", "--run", "demo")
        with running("capflow", "caption", *produce, environment=environment) as producer:
            photograph_flower(browser, address, folder)
            producer.wait(_PATIENCE_SECONDS)
        report = home / "report"
        with running("capflow", "report", "demo", "-o", str(report), environment=environment) as reporter:
            reporter.wait(_PATIENCE_SECONDS)
        photograph_report(browser, report / "index.html", folder)


def answers(address: str) -> bool:
    try:
        return httpx.get(address, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
