"""Hostile zips by name, size and number: refused as a whole, with the reason, and nothing is stored."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from archive_tools import names, png, rebuild, refused

from workbench.storage.archive import Limits
from workbench.storage.archive.read import import_zip
from workbench.storage.history import Store


def test_the_premise_the_rebuilt_zip_is_good(good: bytes, store: Store) -> None:
    assert len(import_zip(store, rebuild(good)).added) == 2


def test_deflated_is_good_too(good: bytes, store: Store) -> None:
    assert len(import_zip(store, rebuild(good, compress=zipfile.ZIP_DEFLATED)).added) == 2


# --- names ------------------------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "../evil.json",
    "images/../../evil.png",
    "/etc/cron.d/evil",
    "C:\\evil.png",
    "C:/evil.png",
    "..\\..\\evil.png",
    "images/wb1-" + "0" * 32 + ".pkl",
    "files/wb1-" + "0" * 32 + ".pt",
    "files/wb1-" + "0" * 32 + ".png.exe",
    "files/evil.png",
    "edits/01ARZ3NDEKTSV4RRFFQ69G5FAV/record.pickle",
    "edits/x/record.json",
    "__MACOSX/x",
    ".hidden",
    "index.html/x",
    "evil\nname.png",
    "IMAGES/wb1-" + "0" * 32 + ".png",
    "a" * 5000,
    "",
    "é.png",
    "images/",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES[:-1], ids=range(len(HOSTILE_NAMES) - 1))
def test_other_names_are_refused(good: bytes, store: Store, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("*evil*"))
    raw = rebuild(good, lambda files: files.update({name: b"evil"}))
    refused(store, raw, "stray-file")
    assert sorted(tmp_path.parent.rglob("*evil*")) == before


def test_a_name_with_a_nul_is_refused(good: bytes, store: Store) -> None:
    """The zip module cuts names at a NUL: what is compared must be what was written."""
    image = next(n for n in names(good) if n.startswith("images/"))

    def entry(info: zipfile.ZipInfo) -> None:
        if info.filename == image:
            info.filename = image + "\0.exe"

    raw = rebuild(good, entry=entry)
    assert image in names(raw)
    refused(store, raw, "stray-file")


def test_the_same_name_twice_is_refused(good: bytes, store: Store) -> None:
    out = io.BytesIO(good)
    name = next(n for n in names(good) if n.startswith("images/"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(out, "a") as file:
        file.writestr(name, png(99))
    refused(store, out.getvalue(), "twice")


# --- too much ----------------------------------------------------------------------------------------------


def test_a_bomb_by_ratio_is_refused_without_unpacking(good: bytes, store: Store) -> None:
    name = "files/wb1-" + "0" * 32 + ".txt"
    compress = zipfile.ZIP_DEFLATED
    raw = rebuild(good, lambda f: f.update({name: bytes(300_000_000)}), compress=compress)
    assert len(raw) < 1_000_000
    tracemalloc.start()
    refused(store, raw, "too-large")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_bombs_by_size_and_count_are_refused(good: bytes, store: Store) -> None:
    refused(store, good, "too-large", Limits(bytes=1000))
    refused(store, good, "too-large", Limits(one_file=100))
    refused(store, good, "too-many", Limits(files=3))

    def big(files: dict[str, bytes]) -> None:
        files["index.html"] = bytes(40 * 2**20)

    refused(store, rebuild(good, big), "too-large")


def test_a_lying_size_is_noticed(good: bytes, store: Store) -> None:
    """The directory says 10 bytes, the packed data hold more: never more than announced is read."""
    raw = bytearray(rebuild(good, compress=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(bytes(raw))) as file:
        info = next(i for i in file.infolist() if i.filename.startswith("images/"))
    at = raw.rindex(info.filename.encode()) - 46
    assert raw[at : at + 4] == b"PK\x01\x02"
    raw[at + 24 : at + 28] = struct.pack("<I", 10)
    refused(store, bytes(raw), "damaged")


def test_a_directory_of_a_million_entries_is_not_parsed(store: Store) -> None:
    head = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
    )
    directory = (head + b"a") * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    raw = directory + end
    tracemalloc.start()
    refused(store, raw, "too-many")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_zip64_is_refused(good: bytes, store: Store) -> None:
    at = good.rindex(b"PK\x05\x06")
    raw = good[:at] + b"PK\x06\x07" + bytes(16) + good[at:]
    refused(store, raw, "zip64")


def test_a_link_is_imported_as_the_bytes_it_holds(good: bytes, store: Store) -> None:
    def entry(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    assert len(import_zip(store, rebuild(good, entry=entry)).added) == 2
    assert not any(path.is_symlink() for path in store.folder.rglob("*"))


def test_encrypted_files_are_refused(good: bytes, store: Store) -> None:
    raw = bytearray(good)
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= 0x1
    refused(store, bytes(raw), "cannot-unpack")
