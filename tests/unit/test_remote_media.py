"""Remote media are fetched only from where they may be, within limits, once, and fail by their true kind."""

from __future__ import annotations

import errno
import io
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import yarl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capflow_tasks.captioning.blame import node_fault
from capflow_tasks.errors import (
    BadEntry,
    MediaAway,
    MediaForbidden,
    MediaMissing,
    MediaOutsideRoot,
    MediaTooLarge,
    MediaUnreadable,
    MediaUnsupported,
    NodeExhausted,
    SampleError,
)
from capflow_tasks.media.addresses import TarMember, open_media
from capflow_tasks.media.budget import MediaBudget
from capflow_tasks.media.copies import Copies
from capflow_tasks.media.paths import check_file, resolve_media
from capflow_tasks.media.pictures import load_image
from capflow_tasks.settings import read_settings
from producer.report.pictures import Originals
from tests.datasets import draw_picture
from tests.media_server import (
    Fault,
    MediaServer,
    cut_off,
    media_server,
    redirect,
    status,
    whole_file,
    without_length,
)
from tests.reports import SIZE, a_sample, write_report

Allow = Callable[..., None]
CONTENT = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture
def server() -> Iterator[MediaServer]:
    with media_server() as server:
        server.files["/a.png"] = CONTENT
        yield server


@pytest.fixture
def allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Allow]:
    """Sets what may be fetched, and other settings."""

    def allow(*places: str, **others: object) -> None:
        monkeypatch.setenv("CAPFLOW_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("CAPFLOW_REMOTE_MEDIA", " ".join(places))
        for name, value in others.items():
            monkeypatch.setenv(f"CAPFLOW_{name.upper()}", str(value))
        read_settings.cache_clear()

    yield allow
    read_settings.cache_clear()


def read(url: str) -> bytes:
    with open_media(resolve_media("/", url)) as file:
        return file.read()


def test_a_picture_is_fetched_once_and_decoded(server: MediaServer, allow: Allow, tmp_path: Path) -> None:
    allow(server.url, "127.0.0.1")
    draw_picture(tmp_path / "drawn.png", 1)
    server.files["/some%20set/a.png"] = (tmp_path / "drawn.png").read_bytes()

    path = resolve_media("/", f"{server.url}/some set/a.png")
    image = load_image(path, MediaBudget())

    assert image.tobytes() == load_image(str(tmp_path / "drawn.png"), MediaBudget()).tobytes()
    assert check_file(path, 1 << 20).size == (tmp_path / "drawn.png").stat().st_size
    assert len(server.asked) == 1


def test_a_report_draws_a_remote_picture_and_links_to_no_file(
    server: MediaServer, allow: Allow, tmp_path: Path
) -> None:
    allow(server.url, "127.0.0.1")
    draw_picture(tmp_path / "drawn.png", 1)
    server.files["/drawn.png"] = (tmp_path / "drawn.png").read_bytes()
    sample = a_sample(0, image=f"{server.url}/drawn.png")

    write_report(tmp_path / "report", [sample], replace(SIZE, originals=Originals.LINK))

    assert (tmp_path / "report" / "large" / "0" / "0-0.jpg").exists()
    assert server.url in (tmp_path / "report" / "data" / "samples-0.js").read_text()


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("http://other.example/a.png", MediaForbidden, "add http://other.example to it on every worker"),
        ("https://cdn.example.org.evil.example/a.png", MediaForbidden, "does not allow"),
        ("http://cdn.example.org/a.png", MediaForbidden, "add http://cdn.example.org"),
        ("https://cdn.example.org:8443/a.png", MediaForbidden, "add https://cdn.example.org:8443"),
        ("s3://other/a.png", MediaForbidden, "add s3://other"),
        ("s3://bucket/other/a.png", MediaForbidden, "does not allow"),
        ("s3://bucket/set-2/a.png", MediaForbidden, "does not allow"),
        ("s3://bucket/set/../other/a.png", MediaOutsideRoot, "leads up"),
        ("s3://bucket/set/%2e%2e/a.png", MediaOutsideRoot, "leads up"),
        ("https://user:secret@cdn.example.org/a.png", BadEntry, "user or password"),
        ("https://cdn.example.org:port/a.png", BadEntry, "no sound URL"),
        ("https://[/a.png", BadEntry, "no sound URL"),
        ("ftp://cdn.example.org/a.png", MediaUnsupported, "of this kind"),
        ("file:///etc/passwd", MediaUnsupported, "of this kind"),
    ],
)
def test_only_what_the_setting_names_is_fetched(
    allow: Allow, url: str, error: type[SampleError], said: str
) -> None:
    allow("https://cdn.example.org", "s3://bucket/set", "https://*.example.net")

    with pytest.raises(error, match=said):
        resolve_media("/", url)


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example.org/a.png",
        "HTTPS://CDN.example.org:443/a.png",
        "https://a.b.example.net/a",
        "s3://bucket/set/a.png",
    ],
)
def test_what_is_named_is_an_address_as_it_stands(allow: Allow, url: str) -> None:
    allow("https://cdn.example.org", "s3://bucket/set", "https://*.example.net")

    assert resolve_media("/", url) == url
    assert resolve_media("/", f"{url}#frame=3") == f"{url}#frame=3"


@given(
    host=st.text() | st.sampled_from(["cdn.example.org", "a.example.net"]),
    path=st.text() | st.sampled_from(["/a.png", "/../a", "/%2e%2E/a", "\\\\evil.example/a"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_host_is_refused(allow: Allow, host: str, path: str) -> None:
    allow("https://cdn.example.org", "https://*.example.net")

    try:
        assert resolve_media("/", f"https://{host}{path}")
    except SampleError:
        return
    reached = yarl.URL(f"https://{host}{path}").host or ""
    assert reached == "cdn.example.org" or reached.endswith(".example.net")


def test_paths_below_a_remote_root_stay_below_it(allow: Allow) -> None:
    allow("s3://bucket")

    assert resolve_media("s3://bucket/set/", "d/a.png") == "s3://bucket/set/d/a.png"
    assert resolve_media("s3://bucket/set", "a.tar#offset=512&size=3&name=b") == (
        "s3://bucket/set/a.tar#offset=512&size=3&name=b"
    )
    for path in ("/etc/passwd", "../other/a.png", "d/../../a.png"):
        with pytest.raises(MediaOutsideRoot):
            resolve_media("s3://bucket/set", path)


def test_private_addresses_are_refused_unless_named(server: MediaServer, allow: Allow) -> None:
    by_name = server.url.replace("127.0.0.1", "localhost")
    allow(server.url, by_name)

    for url in (server.url, by_name):
        with pytest.raises(MediaForbidden, match=r"private address (127\.0\.0\.1|::1); if"):
            read(f"{url}/a.png")
    assert not server.asked

    allow(server.url, by_name, "127.0.0.0/8", "::1")
    assert read(f"{by_name}/a.png") == CONTENT


def test_a_redirect_is_followed_only_to_what_is_allowed(server: MediaServer, allow: Allow) -> None:
    by_name = server.url.replace("127.0.0.1", "localhost")
    allow(server.url, "127.0.0.1", "::1")
    server.faults["/here"] = [redirect("/a.png")]
    server.faults["/there"] = [redirect(f"{by_name}/a.png")]
    server.faults["/metadata"] = [redirect("http://169.254.169.254/latest/meta-data")]

    assert read(f"{server.url}/here") == CONTENT
    for path in ("/there", "/metadata"):
        with pytest.raises(MediaForbidden, match="does not allow"):
            read(server.url + path)
    # allowed by name, but at a private address that is not
    allow(server.url, "127.0.0.1", "http://169.254.169.254")
    server.faults["/metadata"] = [redirect("http://169.254.169.254/latest/meta-data")]
    with pytest.raises(MediaForbidden, match=r"private address 169\.254\.169\.254"):
        read(f"{server.url}/metadata")


@pytest.mark.parametrize("faults", [[status(503), status(429)], [cut_off], [without_length]])
def test_a_failure_in_passing_is_tried_again(server: MediaServer, allow: Allow, faults: list[Fault]) -> None:
    allow(server.url, "127.0.0.1")
    server.faults["/a.png"] = list(faults)

    assert read(f"{server.url}/a.png") == CONTENT


@pytest.mark.parametrize(
    ("faults", "error", "said"),
    [
        ([status(404)], MediaMissing, "the server says 404"),
        ([status(410)], MediaMissing, "the server says 410"),
        ([status(403)], MediaForbidden, "refuses .* with 403; give each worker credentials"),
        ([status(401)], MediaForbidden, "with 401"),
        ([status(503)] * 3, MediaUnreadable, "the server says 503"),
        ([cut_off] * 3, MediaUnreadable, "could not be fetched"),
    ],
)
def test_failures_have_their_true_kind(
    server: MediaServer, allow: Allow, faults: list[Fault], error: type[SampleError], said: str
) -> None:
    allow(server.url, "127.0.0.1")
    server.faults["/a.png"] = list(faults)

    with pytest.raises(error, match=said) as caught:
        read(f"{server.url}/a.png")

    assert len(server.asked) == len(faults)
    assert node_fault(caught.value, "/", [f"{server.url}/a.png"]) is None
    assert read(f"{server.url}/a.png") == CONTENT  # failures are not kept


def test_what_is_too_slow_or_too_large_is_given_up(server: MediaServer, allow: Allow) -> None:
    allow(server.url, "127.0.0.1", media_timeout_seconds=0.5, max_media_mib=1)
    server.files |= {"/large": bytes(2 << 20), "/endless": bytes(8 << 20), "/slow": CONTENT}
    server.faults = {"/slow": [server.stall], "/endless": [without_length]}

    with pytest.raises(MediaUnreadable, match="Timeout"):
        read(f"{server.url}/slow")
    for path in ("/large", "/endless"):
        with pytest.raises(MediaTooLarge, match=r"limit is 1 MiB \(CAPFLOW_MAX_MEDIA_MIB\)"):
            read(server.url + path)


def test_members_of_a_remote_tar_are_fetched_alone(server: MediaServer, allow: Allow) -> None:
    allow(server.url, "127.0.0.1", max_media_mib=1)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in ("large.bin", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = len(CONTENT) if name == "a.png" else 3 << 20
            tar.addfile(member, io.BytesIO(CONTENT + bytes(3 << 20)))
    server.files["/set.tar"] = content.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content.getvalue())) as tar:
        where = TarMember(tar.getmember("a.png").offset_data, len(CONTENT), "a.png")
    address = f"{server.url}/set.tar#{where}"

    assert read(address) == CONTENT
    assert read(address) == CONTENT
    assert server.asked == ["/set.tar"]
    with pytest.raises(MediaMissing, match=r"http://.*/set.tar has changed or is cut short"):
        read(f"{server.url}/set.tar#{TarMember(1024, 9, 'b.png')}")
    server.faults["/set.tar"] = [whole_file]
    with pytest.raises(MediaUnsupported, match="sends no parts of a file"):
        read(f"{server.url}/set.tar#{TarMember(where.offset + 1, 9, 'c.png')}")


def test_a_server_that_is_away_is_no_fault_of_the_sample(allow: Allow) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/a.png"
    allow(f"http://127.0.0.1:{port}", "127.0.0.1")

    with pytest.raises(MediaUnreadable) as caught:
        read(url)
    fault = node_fault(caught.value, "/", [url])

    assert isinstance(fault, MediaAway)
    assert "nothing answers at" in str(fault)
    assert not fault.is_over()


def test_one_host_of_many_that_is_gone_fails_its_own_samples(allow: Allow) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/a.png"
    allow("http://*", "127.0.0.1")

    with pytest.raises(MediaUnreadable) as caught:
        read(url)

    assert node_fault(caught.value, "/", [url]) is None


def test_many_readers_fetch_once(server: MediaServer, allow: Allow) -> None:
    allow(server.url, "127.0.0.1")
    with ThreadPoolExecutor(8) as threads:
        contents = list(threads.map(read, [f"{server.url}/a.png"] * 32))

    assert contents == [CONTENT] * 32
    assert server.asked == ["/a.png"]


def test_many_processes_make_a_copy_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, get_context("spawn")) as processes:
        found = set(processes.map(_copy_and_note, [str(tmp_path)] * 6))

    assert len(found) == 1
    assert (tmp_path / "noted").read_text() == "made\n"


def _copy_and_note(folder: str) -> Path:
    def write(path: Path) -> None:
        with Path(folder, "noted").open("a") as noted:
            noted.write("made\n")
        path.write_bytes(CONTENT)

    return Copies(Path(folder, "copies"), 1 << 20).get("a", write)


def test_copies_stay_within_their_limit_and_are_made_anew_after_a_day(tmp_path: Path) -> None:
    copies = Copies(tmp_path, max_bytes=100_000)
    made = list[str]()

    def copy(key: str) -> Path:
        def write(path: Path) -> None:
            made.append(key)
            path.write_bytes(bytes(10_000))

        return copies.get(key, write)

    for number in range(30):
        path = copy(str(number))
        an_hour_ago = time.time() - 3600 + number
        os.utime(path, (an_hour_ago, an_hour_ago))
        copy("0")  # used all the time

    kept = [each for each in tmp_path.iterdir() if each.is_file()]
    assert 50_000 <= sum(each.stat().st_size for each in kept) <= 110_000
    assert made.count("0") == 1
    os.utime(copy("0"), (time.time(), time.time() - 90_000))
    copy("0")
    assert made.count("0") == 2


def test_a_full_disk_is_the_nodes_fault(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        Copies(tmp_path, 1000).get("a", write)

    assert isinstance(node_fault(caught.value), NodeExhausted)
    assert [each for each in tmp_path.iterdir() if each.is_file()] == []
