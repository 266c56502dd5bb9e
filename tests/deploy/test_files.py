"""The deployment files agree with the code and with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sqlalchemy import Engine, text

from capflow_tasks.settings import Settings
from tests.conftest import Eventually
from tests.e2e.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
#: Variables of commands and of these files, which are not settings.
NO_SETTINGS = {"ENV", "ENVIRONMENT", "TAG", "TARGET", "USER", "PASSWORD_FILE", ""}


def read(name: str) -> str:
    return (DEPLOY / name).read_text()


def seconds(pattern: str, name: str) -> int:
    found = re.search(pattern, read(name))
    assert found, f"{pattern} is not in {name}"
    return int(found[1])


def test_whatever_an_installed_package_requires_is_pinned() -> None:
    """Setup installs with --no-deps; torchaudio, torchcodec and triton are left out on purpose."""
    required = {
        canonicalize_name(requirement.name)
        for distribution in distributions(path=[sysconfig.get_path("purelib")])
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    pinned = set(re.findall(r"^([a-z0-9-]+)==", read("constraints.txt"), re.MULTILINE))
    assert required - pinned == {"torchaudio", "torchcodec", "triton"}


@pytest.mark.parametrize(
    "name",
    [
        "compose.yaml",
        "Dockerfile",
        "make-secrets.sh",
        "slurm/capflow.sbatch",
        "systemd/capflow-worker@.service",
        "systemd/capflow-flower.service",
        "helm/capflow/templates/worker.yaml",
        "helm/capflow/templates/services.yaml",
    ],
)
def test_every_variable_that_is_set_is_a_setting(name: str) -> None:
    named = set(re.findall(r"CAPFLOW_([A-Z_]*)", read(name)))
    assert named - {field.upper() for field in Settings.model_fields} <= NO_SETTINGS


@pytest.mark.parametrize(
    ("name", "drain", "grace"),
    [
        ("compose.yaml", r'CAPFLOW_DRAIN_SECONDS: "(\d+)"', r"stop_grace_period: (\d+)s"),
        ("systemd/capflow-worker@.service", r"CAPFLOW_DRAIN_SECONDS=(\d+)", r"TimeoutStopSec=(\d+)"),
        ("slurm/capflow.sbatch", r"CAPFLOW_DRAIN_SECONDS=(\d+)", r"--signal=B:USR1@(\d+)"),
    ],
)
def test_a_worker_is_given_half_a_minute_more_than_it_drains(name: str, drain: str, grace: str) -> None:
    assert seconds(grace, name) >= seconds(drain, name) + 30


def test_prometheus_scrapes_the_names_and_ports_of_the_compose_file() -> None:
    compose = yaml.safe_load(read("compose.yaml"))
    jobs = yaml.safe_load(read("observability/prometheus.yml"))["scrape_configs"]
    targets = {target for job in jobs for each in job["static_configs"] for target in each["targets"]}

    worker, metrics = compose["services"]["worker"], compose["services"]["metrics"]
    port = worker["environment"]["CAPFLOW_METRICS_PORT"]
    assert f"{worker['networks']['fleet']['aliases'][0]}:{port}" in targets
    assert f"{metrics['networks']['fleet']['aliases'][0]}:9399" in targets


def test_no_password_and_no_port_of_a_service_leaves_the_compose_file() -> None:
    services: dict[str, Any] = yaml.safe_load(read("compose.yaml"))["services"]

    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for service in services.values():
        assert not [name for name in service.get("environment", {}) if name.endswith(("_PASSWORD", "_URL"))]


def test_images_get_every_package_that_capflow_needs_and_no_tool_of_its_tests() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {Requirement(line).name for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    # vLLM needs these two as well.
    tools = {Requirement(line).name for line in extras["dev"]} - {"cryptography", "httpx"}
    tools -= {Requirement(line).name for name in ("export", "ocr", "remote") for line in extras[name]}

    answer = subprocess.run(
        [DEPLOY / "requirements.sh", "cpu"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.defpath},
    )
    pinned = {line.partition("==")[0] for line in answer.stdout.splitlines()}

    assert needed - pinned == set()
    assert tools & pinned == set()


@pytest.mark.integration
def test_the_autoscalers_question_is_one_that_the_database_understands(engine: Engine) -> None:
    question = re.search(r"query: (SELECT .*)", read("helm/capflow/templates/autoscaling.yaml"))
    assert question
    with engine.connect() as connection:
        assert connection.execute(text(question[1])).scalar_one() == 0


def test_secrets_become_variables_and_the_command_keeps_its_process_id(tmp_path: Path) -> None:
    (tmp_path / "CAPFLOW_BROKER_URL").write_text("redis://:s'p a$c\"e@redis\n")
    (tmp_path / "CAPFLOW_MODEL").write_text("from-file")
    (tmp_path / "other_secret").write_text("hidden")

    with subprocess.Popen(
        [DEPLOY / "entrypoint.sh", "sh", "-c", "echo $$; env"],
        env={"PATH": os.defpath, "SECRETS_FOLDER": str(tmp_path), "CAPFLOW_MODEL": "given"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pid, *variables = (process.stdout or pytest.fail("no output")).read().splitlines()

    assert int(pid) == process.pid
    assert "CAPFLOW_BROKER_URL=redis://:s'p a$c\"e@redis" in variables
    assert "CAPFLOW_MODEL=given" in variables
    assert "hidden" not in "".join(variables)


def test_secrets_are_drawn_once_and_hidden_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    first, second = draw_secrets(folder), draw_secrets(folder)

    assert first == second
    assert len(set(first.values())) == len(first)
    assert first["redis_password"] in first["CAPFLOW_BROKER_URL"]
    assert folder.stat().st_mode & 0o077 == 0


def draw_secrets(folder: Path) -> dict[str, str]:
    subprocess.run([DEPLOY / "make-secrets.sh", folder], check=True, capture_output=True)
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def fake_celery(tmp_path: Path) -> Path:
    """A folder with a `celery` that records what it is given, asks once for a restart, and ends when told."""
    script = """#!/bin/bash
trap 'exit 0' TERM
echo "$CUDA_VISIBLE_DEVICES $CAPFLOW_METRICS_PORT $CAPFLOW_TENSOR_PARALLEL_SIZE ${@: -1}" >> "$CALLS"
[ "$(grep -c "${@: -1}" "$CALLS")" -gt 1 ] || exit 75
while :; do sleep 0.05; done
"""
    (tmp_path / "celery").write_text(script)
    (tmp_path / "celery").chmod(0o755)
    return tmp_path


def test_several_workers_each_get_their_gpus_are_started_again_and_drain_together(
    fake_celery: Path, eventually: Eventually
) -> None:
    calls = fake_celery / "calls"
    calls.touch()
    environment = {"PATH": f"{fake_celery}:{os.environ['PATH']}", "CALLS": str(calls)}

    with subprocess.Popen([DEPLOY / "workers.sh", "2", "4"], env=environment) as process:
        expected = ["0,1,2,3 9400 4 gpu0@%h"] * 2 + ["4,5,6,7 9401 4 gpu1@%h"] * 2
        eventually(lambda: assert_equal(sorted(calls.read_text().splitlines()), expected))
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_a_unit_gives_its_worker_as_many_gpus_as_its_model_needs(fake_celery: Path) -> None:
    unit = read("systemd/capflow-worker@.service")
    found = re.search(r"ExecStart=/bin/sh -c '(.*?)'\n", unit, re.DOTALL)
    assert found
    # what systemd makes of it for capflow-worker@1
    command = re.sub(r"(?<!%)%i", "1", found[1].replace("\\\n", "").replace("$$", "$")).replace("%%", "%")
    environment = {
        "PATH": os.environ["PATH"],
        "CALLS": str(fake_celery / "calls"),
        "CAPFLOW_TENSOR_PARALLEL_SIZE": "4",
    }
    command = command.replace("/opt/capflow/bin/celery", str(fake_celery / "celery"))

    subprocess.run(["sh", "-c", command], env=environment, check=False)

    assert (fake_celery / "calls").read_text().split() == ["4,5,6,7", "4", "gpu1@%h"]


def assert_equal(found: object, expected: object) -> None:
    assert found == expected


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """Write fake Slurm commands: `srun` runs its command here, the others record their calls."""
    commands = {
        "srun": 'SLURM_LOCALID=0; export SLURM_LOCALID; while [ "$1" != bash ]; do shift; done\n'
        'trap "kill -TERM \\$task" TERM; "$@" & task=$!; echo $$ > srun.pid\n'
        "while kill -0 $task 2>/dev/null; do code=0; wait $task || code=$?; done; exit $code",
        "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat srun.pid)"',
        "scontrol": 'echo "scontrol $*" >> calls',
        "celery": 'echo started >> calls; trap "exit 0" TERM; [ "$(wc -l < calls)" -gt 1 ] || exit 75\n'
        "kill -USR1 $SCRIPT; while :; do sleep 0.05; done",
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "environment").write_text("CAPFLOW_MODEL=tiny\n")
    return tmp_path


def test_a_slurm_job_starts_workers_again_drains_before_its_time_is_up_and_asks_to_go_on(slurm: Path) -> None:
    bash = shutil.which("bash") or "bash"
    environment = {
        "PATH": f"{slurm}:{os.environ['PATH']}",
        "HOME": str(slurm),
        "SLURM_JOB_ID": "7",
        "CAPFLOW_ENVIRONMENT": str(slurm / "environment"),
    }
    script = f"export SCRIPT=$$; source {DEPLOY / 'slurm' / 'capflow.sbatch'}"

    answer = subprocess.run([bash, "-c", script], cwd=slurm, env=environment, timeout=60, check=False)

    assert answer.returncode == 0
    calls = (slurm / "calls").read_text().splitlines()
    assert calls == ["started", "started", "scancel --signal=TERM 7", "scontrol requeue 7"]
