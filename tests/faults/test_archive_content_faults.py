"""Hostile and damaged contents of zips: refused as a whole, with the reason, and nothing is stored."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_tools import png, rebuild, refused
from refusals import refusal

from workbench.core.errors import StoreError
from workbench.storage.archive.read import import_zip
from workbench.storage.archive.write import export_file
from workbench.storage.history import Store
from workbench.storage.history.folder import seal, verify

# --- contents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["images/", "masks/", "files/", "edits/", "index.html"])
def test_a_wrong_hash_is_refused(good: bytes, store: Store, folder: str) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.startswith(folder))
        files[name] += b" "

    refused(store, rebuild(good, change, fix=False), "hash")


@pytest.mark.parametrize("end", ["images/", "masks/", "files/"])
def test_another_content_under_the_name_is_refused_though_the_manifest_fits(
    good: bytes, store: Store, end: str
) -> None:
    def change(files: dict[str, bytes]) -> None:
        mine = [n for n in files if n.startswith(end)]
        files[mine[0]], files[mine[1]] = files[mine[1]], files[mine[0]]

    refused(store, rebuild(good, change), "hash")


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
    refused(store, rebuild(good, blob_swap(body, suffix)), "other-kind")
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


RECORD_CODES = ("damaged-record", "missing-file", "other-kind", "too-large")
RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another id": lambda d: d.update(id="01ARZ3NDEKTSV4RRFFQ69G5FAV"),
    "not ended": lambda d: d.update(status="running"),
    "future": lambda d: d.update(format=9),
    "no request": lambda d: d.pop("request"),
    "wrong type": lambda d: d["result"].update(iterations="many"),
    "out of range": lambda d: d["request"].update(seed=-1),
    "unknown picture": lambda d: d["request"]["image"].update(id="wb1:" + "0" * 32),
    "traversal as picture": lambda d: d["request"]["image"].update(id="wb1:../../../etc/passwd"),
    "mask as picture": lambda d: d["request"]["image"].update(id=d["request"]["mask"]["id"]),
    "another size": lambda d: d["request"]["image"].update(width=31),
    "a novel as error": lambda d: d.update(error="x" * 10_000_000),
    "a million steps": lambda d: d["result"].update(losses=[0.5] * 1_000_000),
    "a name without end": lambda d: d["request"]["image"].update(name="x" * 1_000_000),
    "a thousand environments": lambda d: d.update(environment={str(i): "" for i in range(10**5)}),
    "traversal as result": lambda d: d["result"].update(image="../../evil"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_is_not_right_is_refused(good: bytes, store: Store, what: str) -> None:
    refused(store, rebuild(good, record_change(RECORDS[what])), RECORD_CODES)


def test_a_record_without_a_valid_checksum_is_refused(good: bytes, store: Store) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = next(n for n in files if n.endswith("record.json"))
        files[name] = files[name].replace(b'"seed": 0', b'"seed": 1')

    refused(store, rebuild(good, change), "damaged-record")


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "future": (lambda d: d.update(format=2), "newer-format"),
    "other kind": (lambda d: d.update(kind="photos"), "other-kind"),
    "format true": (lambda d: d.update(format=True), "other-kind"),
    "negative format": (lambda d: d.update(format=-1), "other-kind"),
    "no format": (lambda d: d.pop("format"), "other-kind"),
    "no files": (lambda d: d.pop("files"), "incomplete"),
    "files as list": (lambda d: d.update(files=[]), "incomplete"),
    "file as text": (lambda d: d["files"].update({"index.html": "x"}), "incomplete"),
    "no edits": (lambda d: d.update(edits=[]), "no-edit"),
    "stray edit": (lambda d: d["edits"].pop(), "no-edit"),
    "unknown edit": (lambda d: d["edits"].append("01ARZ3NDEKTSV4RRFFQ69G5FAV"), "missing-file"),
    "traversal edit": (lambda d: d["edits"].append("../../x"), "missing-file"),
    "number as edit": (lambda d: d["edits"].append(5), "incomplete"),
    "lora of nobody": (lambda d: d.update(loras={"x": "y"}), "stray-file"),
    "missing lora": (
        lambda d: d.update(loras={d["edits"][0]: "files/x.safetensors"}),
        "missing-file",
    ),
    "picture as lora": (
        lambda d: d.update(loras={d["edits"][0]: next(n for n in d["files"] if "images" in n)}),
        "missing-file",
    ),
    "not listed": (lambda d: d["files"].pop("index.html"), "other-contents"),
    "not there": (lambda d: d["files"].update({"x": {}}), "other-contents"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_is_not_right_is_refused(good: bytes, store: Store, what: str) -> None:
    change, code = MANIFESTS[what]
    refused(store, rebuild(good, manifest=change), code)


def test_a_missing_picture_is_refused_but_not_one_that_is_here_already(
    good: bytes, store: Store, source: Store
) -> None:
    raw = rebuild(good, lambda f: f.pop(next(n for n in f if n.startswith("masks/"))))
    refused(store, raw, "missing-file")
    for kind, name, _path in source.files():
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
    refused(store, raw, ("not-a-zip", "damaged", "no-manifest"))


def test_a_zip_of_something_else_is_refused(store: Store) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("index.html", "<p>hello")
    refused(store, out.getvalue(), "no-manifest")


def test_every_cut_and_300_flips_of_a_good_zip(good: bytes, store: Store, source: Store) -> None:
    """Never anything but `StoreError` or the true edits; what is stored is always whole."""
    chance = random.Random(7)
    true = {r.id: r for r in source.records()}
    for at in range(0, len(good), max(1, len(good) // 60)):
        refused(store, good[:at], ("not-a-zip", "damaged"))
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
        with refusal("not-written", kind=StoreError):
            export_file(source, wrong)
    assert path.read_bytes() == b"older"
