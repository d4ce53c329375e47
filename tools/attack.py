"""Attack the workbench on this machine and print what fell short: `make attack`.

python tools/attack.py            about 2,000 fuzzed files, a server, kills: at most ten minutes
python tools/attack.py --quick    the same kinds in about half a minute, without server and kills

Loopback only. Every hostile file is opened in a process of its own, whose memory and processor time are
read when it ends. Exit code 1 when a line of the table falls short.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.unpickle import read_pickle  # noqa: E402
from workbench.core.errors import BadInput, WorkbenchError  # noqa: E402
from workbench.core.record import EditRecord, EditResult, JobState  # noqa: E402
from workbench.core.request import EditRequest, Point, PointPair  # noqa: E402
from workbench.imaging import decode  # noqa: E402
from workbench.storage.archive.read import import_zip  # noqa: E402
from workbench.storage.archive.write import export_zip  # noqa: E402
from workbench.storage.cache import Cache  # noqa: E402
from workbench.storage.history import Store  # noqa: E402
from workbench.storage.history.folder import verify  # noqa: E402

MEMORY, SECONDS = 1 << 30, 10.0  # what an upload may hold: bytes beyond the program, seconds of CPU
PORT = 8697


class Row:
    """One line of the table."""

    def __init__(self, attack: str) -> None:
        """No tries yet."""
        self.attack, self.tries, self.short = attack, 0, []  # type: ignore[var-annotated]
        self.note = ""

    def print(self) -> None:
        """The line, and what fell short below it."""
        state = "X " if self.short else "ok"
        print(f"{state}  {self.attack:<46} {self.tries:>5}  {self.note}", flush=True)
        for text in self.short[:5]:
            print(f"      {text}")


# --- in a process of its own ---------------------------------------------------------------------------


def _child(work: Callable[[Any], None], items: list[Any], pipe: Any) -> None:
    """Do the work on each item; only the errors that a caller may expect are expected."""
    pipe.send(psutil.Process().memory_info().rss)
    for number, item in enumerate(items):
        try:
            work(item)
        except WorkbenchError:
            continue
        except BaseException:
            pipe.send((number, traceback.format_exc(limit=-3)))
    pipe.close()


def apart(work: Callable[[Any], None], items: list[Any]) -> tuple[list[str], float, float]:
    """(what went wrong, MB held beyond the start, seconds of CPU) of the items in one forked process."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, items, theirs))
    process.start()
    theirs.close()
    # Measured in the child: a fork keeps its parent's own pages, but not those of its mapped libraries.
    before = mine.recv() / 1024
    wrong = []
    while True:
        try:
            number, text = mine.recv()
        except EOFError:
            break
        wrong.append(f"item {number}: {' '.join(text.split())[-200:]}")
    _, status, used = os.wait4(process.pid or 0, 0)
    if status:
        wrong.append(f"the process ended with status {status}")
    return wrong, max(0, used.ru_maxrss - before) / 1024, used.ru_utime + used.ru_stime


def opened(raw: bytes) -> None:
    """As an upload and as a mask."""
    decode.decode(raw, "attack")
    decode.decode_mask(raw, 64, 64, "attack")


# --- pictures ------------------------------------------------------------------------------------------


def tiff(entries: list[tuple[int, int, int, bytes | int]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value or bytes kept after it)."""
    at = 8 + 2 + 12 * len(entries) + 4
    table, extra = b"", b""
    for tag, kind, count, value in entries:
        if isinstance(value, bytes):
            table += struct.pack("<HHII", tag, kind, count, at + len(extra))
            extra += value
        else:
            table += struct.pack("<HHII", tag, kind, count, value)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return head + table + b"\0\0\0\0" + extra + tail


def exhausting(scale: float) -> Iterator[tuple[str, bytes]]:
    """Small files that declare or repeat more than a picture needs."""
    side = 26752
    yield "TIFF tile of 26752 x 26752", tiff([
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 134), (325, 4, 1, 64),
    ], b"\x80" * 64)  # fmt: skip
    strips = int(2_000_000 * scale)
    yield f"TIFF of {strips} strips", tiff([
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, strips, b"\x08\0\0\0" * strips), (277, 3, 1, 1), (278, 4, 1, 1),
        (279, 4, strips, b"\x01\0\0\0" * strips),
    ])  # fmt: skip
    out = io.BytesIO()
    Image.new("P", (32, 32)).save(out, "GIF")
    gif, comments = out.getvalue(), int(8_000_000 * scale)
    yield f"GIF of {comments} comments", gif[:-1] + b"\x21\xfe\x01a\0" * comments + gif[-1:]
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "JPEG", progressive=True)
    jpeg = out.getvalue()
    piece = b"\xff\xe1" + struct.pack(">H", 65535) + b"Exif\0\0" + b"x" * 65527
    yield "JPEG of 900 APP1 segments", jpeg[:2] + piece * int(900 * min(1.0, scale * 4)) + jpeg[2:]
    begin = [m.start() for m in re.finditer(b"\xff\xda", jpeg)]
    scan = jpeg[begin[0] : begin[1] if len(begin) > 1 else len(jpeg) - 2]
    out = io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(out, "JPEG", progressive=True)
    big = out.getvalue()
    begin = [m.start() for m in re.finditer(b"\xff\xda", big)]
    scan = big[begin[0] : begin[1]]
    scans = int(9_000 * scale)
    yield f"progressive JPEG of {scans} scans", big[:-2] + scan * scans + big[-2:]
    yield "PNG that declares 60000 x 60000", png_of(60000, 60000, zlib.compress(b"\0" * 1_000_000))
    text = zlib.compress(b"a" * int(200_000_000 * scale))
    yield (
        "PNG with a text of 200 MB packed",
        png_of(32, 32, zlib.compress(b"\0" * 3200), (b"zTXt", b"c\0\0" + text)),
    )
    profile = zlib.compress(b"\0" * int(200_000_000 * scale))
    yield (
        "PNG with a profile of 200 MB packed",
        png_of(32, 32, zlib.compress(b"\0" * 3200), (b"iCCP", b"p\0\0" + profile)),
    )
    frames = [Image.new("P", (64, 64), n % 250) for n in range(int(2000 * scale))]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    yield f"GIF of {len(frames)} frames", out.getvalue()


def png_of(width: int, height: int, data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB with whatever data and chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        mark = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + mark

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(k, b) for k, b in parts)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or overwritten by extreme numbers."""
    out = bytearray(raw)
    for _ in range(chance.randint(1, 12)):
        at = chance.randrange(len(out))
        way = chance.randrange(5)
        if way == 0:
            out[at] = chance.randrange(256)
        elif way == 1:
            del out[at : at + chance.randint(1, 64)]
        elif way == 2:
            out[at:at] = out[at : at + chance.randint(1, 64)]
        elif way == 3:
            out[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
            )
        else:
            out = out[: max(8, at)] if chance.random() < 0.3 else out
        out = out or bytearray(raw)
    return bytes(out)


def pictures() -> list[bytes]:
    """One small picture of each kind."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    out = []
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
    ):  # fmt: skip
        file = io.BytesIO()
        rgb.save(file, kind, **options)
        out.append(file.getvalue())
    return out


def attack_exhausting(quick: bool) -> Row:
    """Files that are small and ask for a lot."""
    row = Row("small files that exhaust (1 GB, 10 s of CPU)")
    most, longest = 0.0, 0.0
    for name, raw in exhausting(0.05 if quick else 1.0):
        wrong, held, used = apart(opened, [raw])
        row.tries += 1
        most, longest = max(most, held), max(longest, used)
        row.short += [f"{name}: {text}" for text in wrong]
        if held * 2**20 > MEMORY or used > SECONDS:
            row.short.append(f"{name} ({len(raw)} bytes): {held:.0f} MB, {used:.1f} s")
    row.note = f"at most {most:.0f} MB and {longest:.1f} s"
    return row


def attack_fuzzed(quick: bool) -> Row:
    """Damaged pictures: refused with a sentence, or opened; never another error, never a crash."""
    row, chance = Row("fuzzed pictures, as upload and as mask"), random.Random(1)  # noqa: S311
    seeds = pictures()
    for _ in range(2 if quick else 20):
        items = [mutated(chance.choice(seeds), chance) for _ in range(100)]
        wrong, held, used = apart(opened, items)
        row.tries += len(items)
        row.short += wrong
        if held * 2**20 > MEMORY or used > 100 * SECONDS:
            row.short.append(f"a hundred held {held:.0f} MB and took {used:.1f} s")
    return row


# --- history, cache, pickles ---------------------------------------------------------------------------


def an_edit(store: Store) -> EditRecord:
    """A finished edit in a history."""
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    request = EditRequest(
        image=store.put_image(rgb, name="p.png"), pairs=(PointPair(Point(1, 2), Point(5, 6)),)
    )
    name = store.begin(request)
    record = EditRecord(
        id=name, request=request, status=JobState.DONE,
        result=EditResult(image=store.put_image(rgb[::-1].copy()).id, distances=(1.0,)),
        finished="2026-11-23T10:00:05.000000+00:00",
    )  # fmt: skip
    store.finish(record)
    return record


def attack_zips(quick: bool) -> Row:
    """Damaged exports: refused as a whole, and the history stays in order."""
    row, chance = Row("fuzzed zips into a history"), random.Random(2)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "a")
        raw = export_zip(store, [an_edit(store).id])
        goal = Store(Path(folder) / "b")
        items = [mutated(raw, chance) for _ in range(50 if quick else 500)]
        items += [changed for changed in rewritten(raw)]
        wrong, held, used = apart(lambda item: import_zip(goal, item) and None, items)
        row.tries, row.short = len(items), wrong
        if held * 2**20 > MEMORY:
            row.short.append(f"held {held:.0f} MB")
        if not verify(Store(Path(folder) / "b")).ok:
            row.short.append("the history is no longer in order")
        row.note = f"{held:.0f} MB, {used:.1f} s"
    return row


def rewritten(raw: bytes) -> Iterator[bytes]:
    """The zip with each value of its JSON replaced by an odd one, its manifest made to fit."""
    odd: list[Any] = [
        True,
        -1,
        1e308,
        "x" * 100_000,
        ["y"] * 10_000,
        {"z": {}},
        None,
        "\0",
        "../../x",
    ]
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        content = {n: file.read(n) for n in file.namelist()}
    manifest = json.loads(content.pop("manifest.json"))
    for name in [n for n in content if n.endswith(".json")]:
        data = json.loads(content[name])
        for path in list(_paths(data)):
            for value in odd:
                files = content | {name: json.dumps(_changed(data, path, value)).encode()}
                marks = {
                    n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)}
                    for n, b in files.items()
                }
                files["manifest.json"] = json.dumps(manifest | {"files": marks}).encode()
                out = io.BytesIO()
                with zipfile.ZipFile(out, "w") as file:
                    for n, body in files.items():
                        file.writestr(n, body)
                yield out.getvalue()


def _paths(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where the values of nested objects are."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from _paths(value, (*path, key))


def _changed(data: Any, path: tuple[str, ...], value: Any) -> Any:
    """The same data with one value replaced."""
    if not path:
        return value
    return data | {path[0]: _changed(data[path[0]], path[1:], value)}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        """`mark` is the file."""
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle does when it is opened."""
        return (open, (self.mark, "w"))


def attack_pickles(quick: bool) -> Row:
    """Pickles planted in the cache and given as points: never run."""
    row, chance = Row("planted and fuzzed pickles"), random.Random(3)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "ran"
        bomb = pickle.dumps(Bomb(str(mark)))
        cache = Cache(Path(folder) / "cache")
        cache.put("wb1:" + "0" * 32, b"x" * 100_000, kind="lora")
        for file in (Path(folder) / "cache").rglob("*.val"):
            file.write_bytes(bomb)
        cache.get("wb1:" + "0" * 32)
        plain = pickle.dumps({"points": [[1.5, 2], [3, 4]], "mask": np.zeros((8, 8), np.uint8)})
        items = [bomb, *(mutated(plain, chance) for _ in range(100 if quick else 3000))]

        def read(raw: bytes) -> None:
            try:
                read_pickle(raw, "attack.pkl")
            except BadInput:
                return

        wrong, held, _ = apart(read, items)
        row.tries, row.short = len(items) + 1, wrong
        if mark.exists():
            row.short.append("a pickle ran")
        if held * 2**20 > MEMORY:
            row.short.append(f"held {held:.0f} MB")
    return row


# --- the server ----------------------------------------------------------------------------------------


def asked(path: str, **headers: str) -> tuple[int, dict[str, str]]:
    """(status, headers) of a GET on the loopback server; `host` replaces the Host header."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.putrequest("GET", path, skip_host="host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


SOCKET = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
          "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip


def attack_server() -> Row:
    """Other names, other origins, frames: refused on every path."""
    row = Row("rebinding, other origins, frames")
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "workbench", "app", "--port", str(PORT)], cwd=REPO,
            env={**os.environ, "WORKBENCH_CACHE": folder}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for _ in range(240):
                try:
                    socket.create_connection(("127.0.0.1", PORT), 1).close()
                    break
                except OSError:
                    time.sleep(0.5)
            good = f"127.0.0.1:{PORT}"
            for path in (
                "/",
                "/drag",
                "/_stcore/health",
                "/_stcore/stream",
                "/media/x",
                "/settings",
            ):
                more = SOCKET if path.endswith("stream") else {}
                for headers in (
                    {"host": f"evil.example:{PORT}"}, {"host": good, "Origin": "http://evil.example"},
                    {"host": good, "Origin": "http://127.0.0.1:9"}, {"host": good, "Origin": "null"},
                    {"host": "127.0.0.1.evil.example"},
                ):  # fmt: skip
                    status, _ = asked(path, **headers, **more)
                    row.tries += 1
                    if status != 403:
                        row.short.append(f"{path} with {headers} answered {status}")
                if not more:
                    status, found = asked(path)
                    row.tries += 1
                    if found.get("x-frame-options") != "DENY":
                        row.short.append(f"{path} may be framed")
        finally:
            server.terminate()
            server.wait()
    return row


def attack_by_tests(title: str, *tests: str) -> Row:
    """The kills and the full disks of the tests, counted."""
    row = Row(title)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)  # noqa: S603
    passed = re.search(r"(\d+) passed", done.stdout)
    row.tries = int(passed[1]) if passed else 0
    row.short = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE)
    if done.returncode and not row.short:
        row.short = [done.stdout[-200:]]
    row.note = "tests; each kills or fills for real"
    return row


def main(arguments: list[str]) -> int:
    """Print the table; 1 when a line falls short."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half a minute, no server, no kills")
    quick = parser.parse_args(arguments).quick
    begun = time.monotonic()
    rows = []
    attacks: list[Callable[[], Row]] = [
        lambda: attack_exhausting(quick), lambda: attack_fuzzed(quick), lambda: attack_zips(quick),
        lambda: attack_pickles(quick),
    ]  # fmt: skip
    if not quick:
        attacks += [
            attack_server,
            lambda: attack_by_tests("kill -9 at random moments", "tests/faults/test_kill_faults.py"),
            lambda: attack_by_tests(
                "full disks and planted files", "tests/faults/test_cache_disk_faults.py",
                "tests/faults/test_store_faults.py", "tests/faults/test_cache_faults.py",
            ),
        ]  # fmt: skip
    for attack in attacks:
        row = attack()
        row.print()
        rows.append(row)
    print(f"{sum(r.tries for r in rows)} tries in {time.monotonic() - begun:.0f} s")
    return int(any(r.short for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
