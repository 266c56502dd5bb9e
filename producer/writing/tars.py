"""Write tars for `webdataset`: captions together with their media.

    Rank0_node0_vqa-000000012.json      the sample's values
    Rank0_node0_vqa-000000012.txt       the caption
    Rank0_node0_vqa-000000012.jpg       the media file, unchanged; several are .0.jpg, .1.png and so on

A key is the name of the shard's caption file and the sample's index. The library ends a key at the first dot,
so a dot in a dataset's name becomes "~", which such names never contain. All samples of one tar have the same
suffixes, because `datasets` takes its columns from the first five; and every sample's JSON has the same keys
with values of the same types. No tar records a time or an owner, so that the same state and media give the
same bytes.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from capflow_tasks.errors import MediaCorrupt, SampleError
from capflow_tasks.media.addresses import open_media, readable_name
from capflow_tasks.media.paths import check_file, file_errors, resolve_media
from capflow_tasks.records import JsonObject, Modality
from producer.writing.captions import Captioned, ExportedFile, LeftOut
from producer.writing.conversations import media_listed
from producer.writing.ownership import OwnFiles
from producer.writing.parquet import SHARES, only_fields, row_of
from producer.writing.whole import whole_file

#: Tars that are written at a time, each for samples with other suffixes; then the oldest is ended.
_OPEN_TARS = 64
#: A usable suffix of a media file, in lower case.
_SUFFIX = re.compile(r"(?!json$|txt$)[a-z0-9]+")
#: A sample's files by their suffix: their bytes, or the path of a media file.
_Members = dict[str, bytes | str]

#: The fields of a sample's JSON: columns of Parquet, each of one type; objects and lists are JSON texts.
VALUES = (
    *("dataset", "index", "id", "root", "media", "domain", "confidence", "caption", "conversations"),
    *("reports", "scores", "overall", "expected_scores", "errors", "model", "revision", "engine", "sampling"),
    *("workflow", "finish_reason", *SHARES, "claims", "unsupported_quotes", "guard", "entry"),
)
#: What stands for a value that is not there, where it is not "".
_ABSENT: JsonObject = {"confidence": 1.0, "overall": 0} | dict.fromkeys(SHARES, -1.0)


class Packing:
    """Writes samples into tars named `<name>-000000.tar` and on."""

    def __init__(
        self, own: OwnFiles, folder: Path, name: str, shard_size: int, fields: Sequence[str] = ()
    ) -> None:
        self._own = own
        self._folder = folder
        self._name = name
        self._shard_size = shard_size
        self._fields = fields
        self._tars: list[_Tar] = []
        #: Those that are written, by the suffixes of their samples.
        self._open: dict[tuple[str, ...], _Tar] = {}
        #: Suffixes of media, with their kinds.
        self.suffixes: dict[str, Modality] = {}

    def write(self, samples: Iterable[Captioned], left_out: LeftOut) -> list[ExportedFile]:
        """Write the tars, and remove those of an earlier export that are not needed.

        Raises UserError for an unknown field and where a tar is not the run's `own`, ServiceError when the
        disk refuses a file.
        """
        with ExitStack() as stack:
            for each in samples:
                try:
                    members, kinds = _members(each, self._fields)
                    tar = self._open.get(tuple(members)) or self._new_tar(tuple(members), stack)
                    tar.add(each.key, members)
                except SampleError as error:
                    left_out.add(each.key, error)
                    continue
                self.suffixes |= kinds
                if tar.samples == self._shard_size:
                    self._open.pop(tuple(members)).close()
        files = [ExportedFile(tar.path, tar.samples) for tar in self._tars]
        left = set(tars_of(self._folder, self._name)) - {file.path for file in files}
        with self._own.writing([path.name for path in left]):
            for path in left:
                path.unlink()
        return files

    def _new_tar(self, suffixes: tuple[str, ...], stack: ExitStack) -> "_Tar":
        if len(self._open) == _OPEN_TARS:
            self._open.pop(next(iter(self._open))).close()
        tar = _Tar(self._own, self._folder / f"{self._name}-{len(self._tars):06}.tar")
        stack.enter_context(tar)
        self._open[suffixes] = tar
        self._tars.append(tar)
        return tar


def tars_of(folder: Path, name: str) -> list[Path]:
    """List the tars in the folder that an export of this name may have written."""
    # The name is part of a file name, without wildcards.
    return sorted(folder.glob(f"{name}-{'[0-9]' * 6}.tar"))


def features_of(suffixes: Mapping[str, Modality], fields: Sequence[str]) -> list[JsonObject]:
    """Return the columns of tars with these suffixes of media, as a data set card writes them."""
    turn = [{"name": "from", "dtype": "string"}, {"name": "value", "dtype": "string"}]
    types = {"index": "int64", "confidence": "float64", "overall": "int64"}
    types |= dict.fromkeys(SHARES, "float64")
    values = [
        {"name": name, "list": turn}
        if name == "conversations"
        else {"name": name, "dtype": types.get(name, "string")}
        for name in fields or VALUES
    ]
    media = [{"name": suffix, "dtype": kind.value} for suffix, kind in sorted(suffixes.items())]
    text = [{"name": name, "dtype": "string"} for name in ("txt", "__key__", "__url__")]
    return [{"name": "json", "struct": values}, *media, *text]


class _Tar(ExitStack):
    """A tar that is written; it appears whole when it is closed."""

    def __init__(self, own: OwnFiles, path: Path) -> None:
        super().__init__()
        self.path = path
        self.samples = 0
        self.enter_context(own.writing([path.name]))
        self._file = self.enter_context(whole_file(path))
        self._tar = self.enter_context(
            tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        )

    def add(self, key: str, members: _Members) -> None:
        """Add a sample; one whose media fail leaves nothing in the tar. Raises SampleError."""
        start = self._tar.offset
        try:
            for suffix, content in members.items():
                self._add(f"{key}.{suffix}", content)
            self.samples += 1
        except SampleError:
            self._file.seek(start)
            self._file.truncate()
            self._tar.offset = start
            raise

    def _add(self, name: str, content: bytes | str) -> None:
        member = tarfile.TarInfo(name)
        if isinstance(content, bytes):
            member.size = len(content)
            self._tar.addfile(member, BytesIO(content))
            return
        with file_errors(content):
            source = open_media(content)
        with source:
            member.size = source.seek(0, os.SEEK_END)
            source.seek(0)
            self._tar.addfile(member, cast(BinaryIO, _MediaFile(content, source)))


def _members(each: Captioned, fields: Sequence[str]) -> tuple[_Members, dict[str, Modality]]:
    """Return what to pack of the sample, and its media's suffixes.

    Raises SampleError when a media file is missing or unusable.
    """
    values = json.dumps(values_of(each, fields), ensure_ascii=False)
    members: _Members = {"json": values.encode()}
    if isinstance(caption := each.caption or each.record.get("caption"), str):
        members["txt"] = caption.encode()
    media, kinds = media_listed(each.sample.entry), dict[str, Modality]()
    for number, (kind, relative) in enumerate(media):
        path = resolve_media(each.shard.root, relative)
        check_file(path, max_bytes=1 << 62)
        place = f"{number}." if len(media) > 1 else ""
        suffix = Path(readable_name(relative)).suffix.removeprefix(".").lower()
        name = place + (suffix if _SUFFIX.fullmatch(suffix) else kind.value)
        members[name], kinds[name] = path, kind
    return members, kinds


def values_of(each: Captioned, fields: Sequence[str] = ()) -> JsonObject:
    """Return a sample's JSON. Raises UserError for an unknown field."""
    row = row_of(each)
    row["scores"] = {pair["dimension"]: pair["grade"] for pair in row["scores"]}
    row["reports"] = {pair["agent"]: pair["text"] for pair in row["reports"]}
    return only_fields({name: _plain(name, row[name]) for name in VALUES}, fields)


def _plain(name: str, value: Any) -> Any:
    """Return a value of the field's one type."""
    if value is None:
        return _ABSENT.get(name, "")
    is_nested = isinstance(value, dict | list) and name != "conversations"
    return json.dumps(value, ensure_ascii=False) if is_nested else value


@dataclass(frozen=True, slots=True)
class _MediaFile:
    """A medium whose read errors are the sample's, not the tar's."""

    name: str
    file: BinaryIO

    def read(self, size: int = -1) -> bytes:
        with file_errors(self.name):
            data = self.file.read(size)
        if len(data) < size:
            raise MediaCorrupt(f"{self.name} became shorter while it was read.")
        return data
