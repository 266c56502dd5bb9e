"""Jobs in child processes: one that crashes, hangs or is killed ends alone."""

from __future__ import annotations

import multiprocessing
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from capflow_tasks.errors import DecodersBroken, MediaCorrupt, MediaTooLarge, MediaUnreadable
from capflow_tasks.media import children as children_module
from capflow_tasks.media.decoders import VideoFiles
from tests.conftest import Eventually
from tests.unit.jobs import end_at_first, hang, modules, refuse, stumble


@pytest.fixture
def decoders() -> Iterator[VideoFiles]:
    decoders = VideoFiles(2)
    yield decoders
    decoders.stop()


def test_one_child_does_one_job_after_the_other(decoders: VideoFiles) -> None:
    first = decoders.run("a.mp4", 10, os.getpid)
    assert first != os.getpid()
    assert decoders.run("a.mp4", 10, os.getpid) == first


def test_a_child_imports_neither_torch_nor_vllm(decoders: VideoFiles) -> None:
    from capflow_tasks.media.player import measure

    with pytest.raises(MediaCorrupt, match="decoder failed"):
        decoders.run("a.mp4", 10, measure, None, None)
    assert "av" in (loaded := decoders.run("a.mp4", 10, modules))
    assert not loaded & {"torch", "torchvision", "vllm", "transformers", "qwen_vl_utils"}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGILL])
def test_a_file_that_crashes_the_codec_is_corrupt(decoders: VideoFiles, number: signal.Signals) -> None:
    with pytest.raises(MediaCorrupt, match=rf"a\.mp4 crashed the decoder \({number.name}\)"):
        decoders.run("a.mp4", 10, signal.raise_signal, number)
    assert decoders.run("b.mp4", 10, len, "four") == 4


def test_the_neighbours_of_a_crash_do_not_notice(decoders: VideoFiles) -> None:
    with ThreadPoolExecutor(3) as threads:
        crashes = [
            threads.submit(decoders.run, "a.mp4", 10, signal.raise_signal, signal.SIGSEGV) for _ in range(2)
        ]
        others = [threads.submit(decoders.run, "b.mp4", 10, len, "x" * number) for number in range(6)]
    assert [type(crash.exception()) for crash in crashes] == [MediaCorrupt] * 2
    assert [other.result() for other in others] == list(range(6))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_stopped_from_outside_is_replaced_once(
    decoders: VideoFiles, tmp_path: Path, number: signal.Signals
) -> None:
    """Memory ran short, or the whole service is being stopped: the file is not to blame."""
    assert decoders.run("a.mp4", 10, end_at_first, tmp_path / "mark", number) == "read"
    with pytest.raises(MediaUnreadable, match="was killed twice") as caught:
        decoders.run("a.mp4", 10, signal.raise_signal, number)
    assert caught.value.is_retryable


def test_children_that_do_not_start_are_the_fault_of_the_node(decoders: VideoFiles) -> None:
    python = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable("/bin/false")
    try:
        with pytest.raises(DecodersBroken, match="no process that decodes videos starts on this node"):
            decoders.run("a.mp4", 10, os.getpid)
    finally:
        multiprocessing.set_executable(python)
    assert decoders.run("a.mp4", 10, len, "four") == 4


def test_an_idle_child_that_has_gone_is_replaced(decoders: VideoFiles) -> None:
    child = psutil.Process(decoders.run("a.mp4", 10, os.getpid))
    child.kill()
    child.wait()
    assert decoders.run("a.mp4", 10, os.getpid) != child.pid


def test_a_job_that_hangs_is_ended_at_its_time_limit(
    decoders: VideoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children_module, "_GRACE_SECONDS", 0.5)
    decoders.run("b.mp4", 10, modules)  # it has imported this file then
    with pytest.raises(MediaUnreadable, match=r"a\.mp4 was not decoded within its time limit of 0\.1 s"):
        decoders.run("a.mp4", 0.1, hang, tmp_path / "pid")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert decoders.run("b.mp4", 10, len, "four") == 4


def test_a_reason_is_handed_on_and_anything_else_is_the_files_fault(decoders: VideoFiles) -> None:
    with pytest.raises(MediaTooLarge, match=r"a\.mp4 is too large"):
        decoders.run("a.mp4", 10, refuse)
    with pytest.raises(MediaCorrupt, match="ZeroDivisionError: in a codec"):
        decoders.run("a.mp4", 10, stumble)


def test_there_are_no_more_children_than_allowed(decoders: VideoFiles) -> None:
    with ThreadPoolExecutor(6) as threads:
        pids = [future.result() for future in [threads.submit(decoders.run, "a", 10, os.getpid)] * 6]
        pids += threads.map(lambda _: decoders.run("a.mp4", 10, os.getpid), range(12))
    assert len(set(pids)) <= 2


def test_stopping_ends_the_children(decoders: VideoFiles) -> None:
    pid = decoders.run("a.mp4", 10, os.getpid)
    decoders.stop()
    assert not psutil.pid_exists(pid)
    assert decoders.run("a.mp4", 10, os.getpid) != pid


def test_a_job_that_hangs_does_not_outlive_a_parent_that_is_killed(
    tmp_path: Path, eventually: Eventually
) -> None:
    mark = tmp_path / "pid"
    script = (
        "import sys; from pathlib import Path; from capflow_tasks.media.decoders import VideoFiles\n"
        "from tests.unit.jobs import hang\n"
        f"if __name__ == '__main__': VideoFiles(1).run('a.mp4', 600, hang, Path({str(mark)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2]) as parent:
        eventually(lambda: _assert_written(mark))
        parent.kill()
    eventually(lambda: _assert_gone(int(mark.read_text())))


def _assert_written(mark: Path) -> None:
    assert mark.exists()
    assert mark.read_text()


def _assert_gone(pid: int) -> None:
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
