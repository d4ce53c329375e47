"""Hostile and damaged zips: refused as a whole, with the reason, and nothing is stored."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import random
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workbench.archive import Limits, export_file, export_zip, import_zip
from workbench.errors import StoreError
from workbench.records import EditRecord, EditResult, JobState
from workbench.store import Store, verify
from workbench.store.format import seal
from workbench.types import EditRequest, Point, PointPair

Entry = tuple[zipfile.ZipInfo, bytes]


def png(seed: int) -> bytes:
    out = io.BytesIO()
    rgb = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A history of two edits."""
    store = Store(tmp_path_factory.mktemp("source") / "history")
    for seed in (1, 2):
        rgb = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image, mask = store.put_image(rgb, "p.png"), store.put_mask(rgb[..., 0] > 99)
        request = EditRequest(image=image, mask=mask, pairs=(PointPair(Point(1, 2), Point(3, 4)),))
        name = store.begin(request)
        result = EditResult(image=store.put_blob(png(seed + 10), "png"))
        store.finish(EditRecord(id=name, request=request, status=JobState.DONE, result=result))
    return store


@pytest.fixture(scope="module")
def good(source: Store) -> bytes:
    return export_zip(source)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


def names(raw: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return file.namelist()


def rebuild(
    raw: bytes,
    change: Callable[[dict[str, bytes]], None] = lambda files: None,
    *,
    entry: Callable[[zipfile.ZipInfo], None] = lambda info: None,
    manifest: Callable[[dict[str, Any]], None] = lambda data: None,
    fix: bool = True,
    compress: int = zipfile.ZIP_STORED,
) -> bytes:
    """The zip with changes; with `fix` the manifest's hashes are made to fit, as an attacker would."""
    with zipfile.ZipFile(io.BytesIO(raw)) as old:
        files = {n: old.read(n) for n in old.namelist()}
    data = json.loads(files.pop("manifest.json"))
    change(files)
    if fix:
        data["files"] = {
            n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in files.items()
        }
    manifest(data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as new:
        for name, body in {**files, "manifest.json": json.dumps(data).encode()}.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compress
            info.external_attr = 0o100644 << 16
            entry(info)
            new.writestr(info, body)
    return out.getvalue()


def refused(store: Store, raw: bytes | Path, words: str, limits: Limits | None = None) -> None:
    with pytest.raises(StoreError, match="refused as a whole") as caught:
        import_zip(store, raw, limits=limits)
    assert words in str(caught.value)
    assert list(store.blobs.files()) == []
    assert store.records() == []
    assert store.unreadable() == []


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
    refused(store, raw, "which is no file of an export")
    assert sorted(tmp_path.parent.rglob("*evil*")) == before


def test_a_name_with_a_nul_is_refused(good: bytes, store: Store) -> None:
    """The zip module cuts names at a NUL: what is compared must be what was written."""
    image = next(n for n in names(good) if n.startswith("images/"))

    def entry(info: zipfile.ZipInfo) -> None:
        if info.filename == image:
            info.filename = image + "\0.exe"

    raw = rebuild(good, entry=entry)
    assert image in names(raw)
    refused(store, raw, "no file of an export")


def test_the_same_name_twice_is_refused(good: bytes, store: Store) -> None:
    out = io.BytesIO(good)
    name = next(n for n in names(good) if n.startswith("images/"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(out, "a") as file:
        file.writestr(name, png(99))
    refused(store, out.getvalue(), "twice")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
def test_links_and_devices_are_refused(good: bytes, store: Store, kind: int) -> None:
    def entry(info: zipfile.ZipInfo) -> None:
        if info.filename.startswith("images/"):
            info.external_attr = (kind | 0o777) << 16

    raw = rebuild(good, entry=entry)
    refused(store, raw, "is a link or a device")


# --- too much ----------------------------------------------------------------------------------------------


def test_a_bomb_by_ratio_is_refused_without_unpacking(good: bytes, store: Store) -> None:
    name = "files/wb1-" + "0" * 32 + ".txt"
    compress = zipfile.ZIP_DEFLATED
    raw = rebuild(good, lambda f: f.update({name: bytes(300_000_000)}), compress=compress)
    assert len(raw) < 1_000_000
    tracemalloc.start()
    refused(store, raw, "times its size")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_bombs_by_size_and_count_are_refused(good: bytes, store: Store) -> None:
    refused(store, good, "the limit is 1000", Limits(bytes=1000))
    refused(store, good, "the limit is 100", Limits(one_file=100))
    refused(store, good, "too many files", Limits(files=3))

    def big(files: dict[str, bytes]) -> None:
        files["index.html"] = bytes(40 * 2**20)

    refused(store, rebuild(good, big), "the limit is 33554432")


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
    refused(store, raw, "too many files")
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_zip64_is_refused(good: bytes, store: Store) -> None:
    at = good.rindex(b"PK\x05\x06")
    raw = good[:at] + b"PK\x06\x07" + bytes(16) + good[at:]
    refused(store, raw, "zip64")


@pytest.mark.parametrize("flag", [0x1, 0x40])
def test_encrypted_files_are_refused(good: bytes, store: Store, flag: int) -> None:
    raw = bytearray(good)
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= flag
    refused(store, bytes(raw), "encrypted")


def test_other_packings_are_refused(good: bytes, store: Store) -> None:
    refused(store, rebuild(good, compress=zipfile.ZIP_BZIP2), "packed in a way")
    refused(store, rebuild(good, compress=zipfile.ZIP_LZMA), "packed in a way")


# --- contents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["images/", "masks/", "files/", "edits/", "index.html"])
def test_a_wrong_hash_is_refused(good: bytes, store: Store, folder: str) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.startswith(folder))
        files[name] += b" "

    refused(store, rebuild(good, change, fix=False), "its hash is not that of the manifest")


@pytest.mark.parametrize("folder", ["images/", "masks/", "files/"])
def test_another_content_under_the_name_is_refused_though_the_manifest_fits(
    good: bytes, store: Store, folder: str
) -> None:
    def change(files: dict[str, bytes]) -> None:
        mine = [n for n in files if n.startswith(folder)]
        files[mine[0]], files[mine[1]] = files[mine[1]], files[mine[0]]

    refused(store, rebuild(good, change), "does not match its name")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


def blob_swap(body: bytes, suffix: str = "png") -> Callable[[dict[str, bytes]], None]:
    """Put `body` in as a result, hashes and record fitting: only its kind is wrong."""

    def change(files: dict[str, bytes]) -> None:
        token = hashlib.blake2b(body, digest_size=16).hexdigest()
        name = next(n for n in files if n.endswith("record.json"))
        data = json.loads(files[name])
        del files["files/" + data["result"]["image"].replace("wb1:", "wb1-") + ".png"]
        data["result"]["image"] = f"wb1:{token}"
        files[name] = seal(data)
        files[f"files/wb1-{token}.{suffix}"] = body

    return change


def small_png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(1000))),
            chunk(b"IEND", b""),
        )
    )


WRONG_KINDS = {
    "pickle as png": (pickle.dumps(Bomb()), "png"),
    "pickle as safetensors": (pickle.dumps(Bomb()), "safetensors"),
    "zip (a torch file) as safetensors": (b"PK\x03\x04" + bytes(60), "safetensors"),
    "safetensors with a lying header": (struct.pack("<Q", 2**60) + b"{}", "safetensors"),
    "pickle as json": (pickle.dumps({"a": np.float64(1)}), "json"),
    "gif as png": (b"GIF89a" + bytes(40), "png"),
    "cut png": (png(5)[:-30], "png"),
    "pixel bomb": (small_png(60_000, 60_000), "png"),
    "large pixel bomb": (small_png(13_000, 13_000), "png"),
    "text as mp4": (b"hello there", "mp4"),
    "svg as webp": (b"<svg onload='x'/>", "webp"),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_fault_24_a_file_of_another_kind_than_its_suffix_is_refused(
    good: bytes, store: Store, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body, suffix = WRONG_KINDS[kind]
    refused(store, rebuild(good, blob_swap(body, suffix)), "is not what its name says")
    assert not (tmp_path / "executed").exists()


def test_the_premise_a_swapped_file_of_the_right_kind_is_taken(good: bytes, store: Store) -> None:
    assert len(import_zip(store, rebuild(good, blob_swap(png(77)))).added) == 2


def record_change(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.endswith("record.json"))
        data = json.loads(files[name])
        change(data)
        files[name] = seal(data) if data.get("format") == 1 else json.dumps(data).encode()

    return apply


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another id": lambda d: d.update(id="01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    "not ended": lambda d: d.update(status="running"),
    "future": lambda d: d.update(format=9),
    "no request": lambda d: d.pop("request"),
    "wrong type": lambda d: d["result"].update(iterations="many"),
    "out of range": lambda d: d["request"].update(seed=-1),
    "unknown picture": lambda d: d["request"]["image"].update(id="wb1:" + "0" * 32),
    "traversal as picture": lambda d: d["request"]["image"].update(id="wb1:../../../etc/passwd"),
    "traversal as result": lambda d: d["result"].update(image="../../evil"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_is_not_right_is_refused(good: bytes, store: Store, what: str) -> None:
    refused(store, rebuild(good, record_change(RECORDS[what])), "edit")


def test_a_record_without_a_valid_checksum_is_refused(good: bytes, store: Store) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.endswith("record.json"))
        files[name] = files[name].replace(b'"seed": 0', b'"seed": 1')

    refused(store, rebuild(good, change), "checksum is wrong")


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "future": (lambda d: d.update(format=2), "newer workbench"),
    "other kind": (lambda d: d.update(kind="photos"), "not that of a drag workbench"),
    "no format": (lambda d: d.pop("format"), "not that of a drag workbench"),
    "no files": (lambda d: d.pop("files"), "incomplete"),
    "files as list": (lambda d: d.update(files=[]), "incomplete"),
    "file as text": (lambda d: d["files"].update({"index.html": "x"}), "incomplete"),
    "no edits": (lambda d: d.update(edits=[]), "belongs to no edit"),
    "stray edit": (lambda d: d["edits"].pop(), "belongs to no edit"),
    "unknown edit": (lambda d: d["edits"].append("01ARZ3NDEKTSV4RRFFQ69G5FAV"), "is missing"),
    "traversal edit": (lambda d: d["edits"].append("../../x"), "is missing"),
    "number as edit": (lambda d: d["edits"].append(5), "incomplete"),
    "lora of nobody": (lambda d: d.update(loras={"x": "y"}), "LoRA of no edit"),
    "missing lora": (
        lambda d: d.update(loras={d["edits"][0]: "files/x.safetensors"}),
        "is missing",
    ),
    "picture as lora": (
        lambda d: d.update(loras={d["edits"][0]: next(n for n in d["files"] if "images" in n)}),
        "is missing",
    ),
    "not listed": (lambda d: d["files"].pop("index.html"), "is not in the manifest"),
    "not there": (lambda d: d["files"].update({"x": {}}), "is missing"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_is_not_right_is_refused(good: bytes, store: Store, what: str) -> None:
    change, words = MANIFESTS[what]
    refused(store, rebuild(good, manifest=change), words)


def test_a_missing_picture_is_refused_but_not_one_that_is_here_already(
    good: bytes, store: Store, source: Store
) -> None:
    raw = rebuild(good, lambda f: f.pop(next(n for n in f if n.startswith("masks/"))))
    refused(store, raw, "mask of the edit")
    for kind, name, _path in source.blobs.files():
        if kind == "masks":
            store.put_mask(source.mask(name))
    assert len(import_zip(store, raw).added) == 2


def test_what_no_edit_needs_is_not_stored(good: bytes, store: Store) -> None:
    extra = png(123)
    token = hashlib.blake2b(extra, digest_size=16).hexdigest()
    raw = rebuild(good, lambda f: f.update({f"files/wb1-{token}.png": extra}))
    assert len(import_zip(store, raw).added) == 2
    assert not store.has(f"wb1:{token}")


def test_notes_of_any_shape_are_taken_as_far_as_they_are_notes(good: bytes, store: Store) -> None:
    def change(files: dict[str, bytes]) -> None:
        mine = [n for n in files if n.endswith("notes.json")]
        files[mine[0]] = json.dumps(
            {"title": 5, "note": "x" * 500_000, "favourite": "yes", "binned": "now", "lora": "z"}
        ).encode()

    done = import_zip(store, rebuild(good, change))
    notes = store.notes(done.added[0])
    assert (notes.title, notes.favourite, notes.binned, notes.lora) == ("", False, "", "")
    assert len(notes.note) == 100_000


@pytest.mark.parametrize(
    "raw", [b"", b"PK", b"no zip at all", bytes(100), b"PK\x05\x06" + bytes(18)]
)
def test_what_is_no_zip_is_refused(store: Store, raw: bytes) -> None:
    refused(store, raw, "")


def test_a_zip_of_something_else_is_refused(store: Store) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("index.html", "<p>hello")
    refused(store, out.getvalue(), "no manifest.json")


def test_every_cut_and_300_flips_of_a_good_zip(good: bytes, store: Store, source: Store) -> None:
    """Never anything but `StoreError` or the true edits; what is stored is always whole."""
    chance = random.Random(7)
    true = {r.id: r for r in source.records()}
    for at in range(0, len(good), max(1, len(good) // 60)):
        refused(store, good[:at], "")
    for _ in range(300):
        at = chance.randrange(len(good))
        raw = good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
        try:
            import_zip(store, raw)
        except StoreError:
            continue
        assert {r.id: r for r in store.records()} == true  # a byte that does not count, as a date
    assert verify(store).ok


# --- the disk ---------------------------------------------------------------------------------------------


def test_fault_29_a_full_disk_takes_the_import_back(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    for nth in range(1, 100):
        store = Store(tmp_path / f"history {nth}")
        calls: list[int] = []

        def full(fd: int, raw: Any, nth: int = nth, calls: list[int] = calls) -> int:
            calls.append(1)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, raw)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            try:
                done = import_zip(store, good)
            except StoreError as exc:
                failed = str(exc)
            else:
                break
        assert "No space left" in failed
        assert store.records() == []
        assert store.unreadable() == []
    assert nth > 8
    assert len(done.added) == 2
    assert verify(store).ok


def test_fault_29_a_full_disk_while_exporting_keeps_the_older_file(
    source: Store, tmp_path: Path
) -> None:
    path = tmp_path / "mine.zip"
    path.write_bytes(b"older")
    for wrong in (tmp_path / "no folder" / "mine.zip", Path("/dev/full/mine.zip")):
        with pytest.raises(StoreError, match="could not be written"):
            export_file(source, wrong)
    assert path.read_bytes() == b"older"
