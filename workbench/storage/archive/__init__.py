"""Edits as one zip, to view, keep and import into another history: its layout, and the checks of a zip."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from workbench.core.errors import BadInput, StoreError
from workbench.core.keys import TAG
from workbench.storage.history.blobs import SUFFIXES, Kind

FORMAT = 1
KIND = "drag-workbench-history"
MANIFEST = "manifest.json"
INDEX = "index.html"
FOLDERS: dict[Kind, str] = {"images": "images", "masks": "masks", "blobs": "files"}

_ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_ID = r"wb1-[0-9a-f]{32}"
_ALLOWED = re.compile(
    rf"index\.html|manifest\.json"
    rf"|edits/{_ULID}/(?:record|arrows|parameters|notes)\.json"
    rf"|layers/[a-z0-9-]{{1,80}}/(?:before|after|mask|change)\.png"
    rf"|(?:images|masks)/{_ID}\.png|files/{_ID}\.(?:{'|'.join(SUFFIXES)})"
)
_FOLDER = re.compile(
    rf"(?:edits|images|masks|files|layers|edits/{_ULID}|layers/[a-z0-9-]{{1,80}})/"
)


def is_allowed(name: str) -> bool:
    """True for a name that the writer may have given to a file."""
    return _ALLOWED.fullmatch(name) is not None


def is_folder(name: str) -> bool:
    """True for a folder entry, as other programs add them when they repack the zip."""
    return _FOLDER.fullmatch(name) is not None


def file_name(kind: Kind, name_id: str, suffix: str) -> str:
    """Name of a stored file in the zip."""
    return f"{FOLDERS[kind]}/wb1-{name_id.removeprefix(TAG)}.{suffix}"


def layer_file(edit: str, title: str, what: str) -> str:
    """Name of one of an edit's layers, in a folder that a person finds: before, after, mask, change."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "picture"
    return f"layers/{words}-{edit[-6:].lower()}/{what}.png"


def edit_file(edit: str, what: str) -> str:
    """Name of one of an edit's JSON files."""
    return f"edits/{edit}/{what}.json"


_END, _LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
_ENTRY_BYTES = 256  # of the directory per file: ours take about 120
_CHUNK = 2**20
_JSON_BYTES = 32 * 2**20
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a zip may hold; `ratio` is unpacked to packed size of one file."""

    files: int = 50_000
    bytes: int = 3_000_000_000
    one_file: int = 1_000_000_000
    ratio: int = 100


class Checked:
    """A zip whose names, sizes and hashes are all as its manifest says."""

    def __init__(
        self,
        file: BinaryIO,
        limits: Limits,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        """Check all of `file`; `on_step(done, total)` is called per entry and may raise.

        Raises:
            StoreError: with the reason why the zip is refused.
        """
        _check_directory(file, limits)
        try:
            self._zip = zipfile.ZipFile(file)
            infos = self._zip.infolist()
        except _BROKEN as exc:
            raise _broken("it", exc) from exc
        _check_entries(infos, limits)
        self._infos = {i.filename: i for i in infos if not _is_folder(i)}
        self.manifest = self._manifest()
        self._check_contents(on_step)

    def names(self) -> list[str]:
        """All files but the manifest."""
        return sorted(set(self._infos) - {MANIFEST})

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            StoreError: when it is missing, or was changed since it was checked.
        """
        raw = self._unpack(name)
        known = self.manifest["files"].get(name, {})
        if hashlib.sha256(raw).hexdigest() != known.get("sha256"):
            raise refuse(f"{name} is not what its manifest says", "damaged")
        return raw

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            StoreError: when it is none.
        """
        return _parse(self.read(name), name)

    def close(self) -> None:
        """Let go of the zip (not of the file that was given)."""
        self._zip.close()

    def _manifest(self) -> dict[str, Any]:
        if MANIFEST not in self._infos:
            raise refuse(
                "it has no manifest.json, so it is not an export of the drag workbench",
                "no-manifest",
            )
        data = _parse(self._unpack(MANIFEST), MANIFEST)
        version = data.get("format")
        if data.get("kind") != KIND or type(version) is not int or version < 1:
            raise refuse("its manifest is not that of a drag workbench export", "other-kind")
        if version > FORMAT:
            raise refuse(
                f"it has format {version}, and this workbench reads up to {FORMAT}; "
                "use a newer workbench",
                "newer-format",
            )
        files, edits, loras = data.get("files"), data.get("edits"), data.get("loras", {})
        good = isinstance(files, dict) and all(isinstance(v, dict) for v in files.values())
        good = good and isinstance(edits, list) and all(isinstance(e, str) for e in edits)
        good = good and isinstance(loras, dict) and all(isinstance(v, str) for v in loras.values())
        if not good:
            raise refuse("its manifest is incomplete", "incomplete")
        return data

    def _check_contents(self, on_step: Callable[[int, int], None] | None) -> None:
        listed, present = set(self.manifest["files"]), set(self.names())
        if listed != present:
            odd = sorted(listed ^ present)[0]
            why = "is missing" if odd in listed else "is not in the manifest"
            raise refuse(f"{odd} {why}", "other-contents")
        for i, name in enumerate(sorted(present), 1):
            known = self.manifest["files"][name]
            if (known.get("bytes"), known.get("sha256")) != self._measure(name):
                raise refuse(f"{name} is damaged: its hash is not that of the manifest", "hash")
            if on_step is not None:
                on_step(i, len(present))

    def _measure(self, name: str) -> tuple[int, str]:
        """Bytes and SHA-256 of a file, a piece at a time."""
        sha, size = hashlib.sha256(), 0
        try:
            with self._zip.open(self._infos[name]) as file:
                while piece := file.read(_CHUNK):
                    size += len(piece)
                    sha.update(piece)
        except _BROKEN as exc:
            raise _broken(name, exc) from exc
        return size, sha.hexdigest()

    def _unpack(self, name: str) -> bytes:
        info = self._infos.get(name)
        if info is None:
            raise refuse(f"{name} is missing", "missing-file")
        try:
            with self._zip.open(info) as file:
                return file.read(info.file_size)
        except _BROKEN as exc:
            raise _broken(name, exc) from exc


def _broken(name: str, exc: Exception) -> Refused:
    """The refusal of a file that cannot be unpacked; one that is whole is not called damaged."""
    if isinstance(exc, (NotImplementedError, RuntimeError)):  # packed otherwise, or encrypted
        return refuse(f"{name} cannot be unpacked here ({exc})", "cannot-unpack")
    return refuse(f"{name} is damaged ({exc})", "damaged")


class Refused(StoreError, BadInput):
    """A zip that was not imported: the file is at fault, not this history."""


def refuse(reason: str, code: str) -> Refused:
    """The error for a zip that is not taken."""
    return Refused(f"The zip was refused as a whole: {reason}. Nothing was imported.", code=code)


def _check_directory(file: BinaryIO, limits: Limits) -> None:
    """Look at the end record by hand: a directory of millions of entries is not even parsed."""
    try:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - 64))
        tail = file.read()
        file.seek(0)
    except OSError as exc:
        raise refuse(f"it cannot be read ({exc.strerror})", "unreadable") from exc
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise refuse("it is not a zip, or its end is missing", "not-a-zip")
    count, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
    if _LOCATOR in tail[max(0, at - 20) : at]:
        raise refuse("it is larger than an export can be (zip64)", "zip64")
    if count > limits.files or directory > limits.files * _ENTRY_BYTES:
        raise refuse(f"it holds too many files ({count}; the limit is {limits.files})", "too-many")


def _check_entries(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    if len(infos) > limits.files:
        raise refuse(f"it holds {len(infos)} files; the limit is {limits.files}", "too-many")
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        shown = repr(info.orig_filename[:80])
        if info.orig_filename != name or not (
            is_allowed(name) or (_is_folder(info) and is_folder(name))
        ):
            raise refuse(f"it holds {shown}, which is not a file of an export", "stray-file")
        if name.lower() in seen:
            raise refuse(f"it holds {shown} twice", "twice")
        seen.add(name.lower())
        _check_size(info, shown, limits)
    total = sum(i.file_size for i in infos)
    if total > limits.bytes:
        raise refuse(f"it unpacks to {total} bytes; the limit is {limits.bytes}", "too-large")


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """As `ZipInfo.is_dir`, which fails on an empty name."""
    return info.filename.endswith("/")


def _check_size(info: zipfile.ZipInfo, shown: str, limits: Limits) -> None:
    most = _JSON_BYTES if info.filename.endswith((".json", ".html")) else limits.one_file
    if _is_folder(info):
        most = 0
    if info.file_size > most:
        raise refuse(f"{shown} unpacks to {info.file_size} bytes; the limit is {most}", "too-large")
    if info.file_size > limits.ratio * max(info.compress_size, 1024):
        raise refuse(
            f"{shown} unpacks to {info.file_size // max(1, info.compress_size)} times its size",
            "too-large",
        )


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise refuse(f"{name} is not JSON ({exc})", "not-json") from exc
    if not isinstance(data, dict):
        raise refuse(f"{name} is not a JSON object", "not-json")
    return data
