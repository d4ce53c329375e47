"""Open untrusted picture bytes: size, kind and structure first; in a limited process where needed.

Whatever is wrong with a file comes out as one `BadInput`; Pillow raises dozens of kinds of error,
and none of them gets past `reading`.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from workbench.core.errors import BadInput, Cancelled, Notice
from workbench.imaging.headers import (
    FORMATS,
    MAX_SLOW_PIXELS,
    check_size,
    check_structure,
    kind_of,
    other_kind,
    webp_size,
)

Found = tuple[Sequence[Any], tuple[str, ...], dict[str, Any] | None]

MAX_BYTES = 64 * 1024 * 1024
_CHEAP_BYTES = 4 * 2**20
_CHEAP_PIXELS = 4_000_000
_CHEAP = ("PNG", "JPEG", "GIF", "WebP", "BMP")  # decoders that do what their header says

# The plugins' classes, not Image.open: that one warns instead of refusing from 89 MP on, and its
# warning filter is global to all threads. The base JPEG class, since MPO (a JPEG followed by
# depth maps and previews, from phones) begins with the picture itself.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
}


def is_cheap(raw: bytes, label: str) -> bool:
    """True if a file costs so little that it is decoded here and not in the limited process.

    Raises:
        BadInput: as `check_file`.
    """
    kind = check_file(raw, label)
    if kind not in _CHEAP or len(raw) > _CHEAP_BYTES:
        return False
    im, _kind = opened(raw, label)
    with im:
        return im.width * im.height <= _CHEAP_PIXELS


def check_file(raw: bytes, label: str) -> str:
    """Check size, kind and structure of a picture's bytes; nothing is decoded. Returns the kind.

    Raises:
        BadInput: with a code: "empty", "too-large", "heic", "other-kind", "no-picture", "exhausting".
    """
    size = len(raw)
    if size == 0:
        raise BadInput(f'"{label}" is empty; choose a picture ({FORMATS}).', code="empty")
    if size > MAX_BYTES:
        raise BadInput(
            f'"{label}" has {size / 2**20:.0f} MB; the limit is {MAX_BYTES // 2**20} MB, '
            "so save it smaller.",
            code="too-large",
        )
    kind = kind_of(raw)
    if kind is None:
        other = other_kind(raw)
        if other:
            text = f'"{label}" is {other}, which is not read; save it as one of {FORMATS}.'
            raise BadInput(text, code="other-kind")
        text = f'"{label}" could not be recognised as a picture; use {FORMATS}.'
        raise BadInput(text, code="no-picture")
    check_structure(raw, kind, label)
    if kind == "WebP":
        check_size(*webp_size(raw), label)
    return kind


def opened(raw: bytes, label: str) -> tuple[ImageFile.ImageFile, str]:
    """Open by content, not by name, and check the header; no pixel is decoded yet."""
    kind = check_file(raw, label)
    plugin = _heif(label) if kind == "HEIC" else _PLUGINS[kind]
    with reading(label, kind):
        im = plugin(io.BytesIO(raw))
    slow = kind in ("AVIF", "HEIC", "JPEG 2000")
    check_size(*im.size, label, *((MAX_SLOW_PIXELS,) if slow else ()))
    return im, kind


def _heif(label: str) -> type[ImageFile.ImageFile]:
    """pillow-heif's reader, where it is installed.

    Raises:
        BadInput: code "heic", saying how to go on without.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as exc:
        raise BadInput(
            f"\"{label}\" is a HEIC photo; install its reader with 'pip install pillow-heif', or convert "
            "it to JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible).",
            code="heic",
        ) from exc
    found: type[ImageFile.ImageFile] = HeifImageFile
    return found


def completed(
    raw: bytes, im: ImageFile.ImageFile, label: str, notices: list[str]
) -> ImageFile.ImageFile:
    """A JPEG without its end mark, as viewers show it: with what was lost found by trying.

    The missing bits are given once as zeros and once as ones: where both give the same pixels,
    nothing is missing.

    Raises:
        BadInput: code "cut-off" when more than 1% of the picture is missing.
    """
    ends = (b"\xff\xd9", b"\xff\x00" * 4096 + b"\xff\xd9")
    with reading(label, "JPEG"):
        try:
            im.load()
            return _PLUGINS["JPEG"](io.BytesIO(raw))  # bytes behind the end mark, nothing lacks
        except OSError:
            first, second = (_PLUGINS["JPEG"](io.BytesIO(raw + end)) for end in ends)
            differ = (np.asarray(first) != np.asarray(second)).any(
                axis=-1 if first.mode != "L" else ()
            )
            rows = np.nonzero(differ.reshape(first.height, -1).any(axis=1))[0]
    lost = (first.height - rows[0]) / first.height if len(rows) else 0.0
    if lost > 0.01 and differ.mean() > 0.01:
        raise BadInput(
            f'"{label}" is cut off: its lower {lost:.0%} is missing; fetch it again.',
            code="cut-off",
        )
    whole = "the picture is complete" if not len(rows) else "its last pixels may differ"
    notices.append(Notice(f"The file lacks its last bytes; {whole}.", code="no-end"))
    return _PLUGINS["JPEG"](io.BytesIO(raw + ends[0]))


@contextmanager
def reading(label: str, kind: str) -> Iterator[None]:
    """Map everything that Pillow and zlib may raise on hostile bytes to one sentence."""
    try:
        yield
    except BadInput:
        raise
    except MemoryError as exc:
        text = f'"{label}" needs more memory to decode than is allowed; scale it down first.'
        raise BadInput(text, code="memory") from exc
    # Seen from Pillow on mutated files: OSError, SyntaxError, ValueError, struct.error, zlib.error,
    # KeyError, IndexError, TypeError, OverflowError, EOFError, AttributeError, RuntimeError,
    # DecompressionBombError, and warnings where these are errors.
    except Exception as exc:
        said = " ".join(str(exc).split())
        if "MAX_TEXT" in said:
            raise BadInput(
                f'"{label}" carries more text than is allowed (64 MB, or 1 MB in one piece); '
                "save it again without metadata.",
                code="exhausting",
            ) from exc
        if isinstance(exc, OSError) and "truncated" in said:
            text = f'"{label}" is cut off before its last pixel; fetch or save it again.'
            raise BadInput(text, code="cut-off") from exc
        raise BadInput(
            f'"{label}" is a {kind} that cannot be read ({said[:80] or type(exc).__name__}): a rare form, '
            "or changed on its way; save it again as PNG with another program.",
            code="unreadable",
        ) from exc


MOST_MEMORY = 2**30  # bytes of data that the helper may hold
MOST_SECONDS = 10  # of processor time per file
MOST_WAITING = 60.0  # seconds
_ROOT = Path(__file__).resolve().parents[2]


"""Arrays (uint8 or None), sentences for the user, our own metadata."""


class Stop:
    """Gives up the opening of a file, from another thread than the one that waits for it."""

    def __init__(self) -> None:
        """Not given up."""
        self.given_up = False
        self._lock = threading.Lock()
        self._helper: _Helper | None = None

    def set(self) -> None:
        """Give it up: the helper at work on the file is ended, another person's is not."""
        with self._lock:
            self.given_up = True
            if self._helper is not None:
                self._helper.process.kill()
                self._helper.process.wait()

    def check(self) -> None:
        """Raise Cancelled when it was given up."""
        if self.given_up:
            raise Cancelled

    @contextmanager
    def of(self, helper: _Helper) -> Iterator[None]:
        """While `helper` is at work on the file."""
        with self._lock:
            self.check()
            self._helper = helper
        try:
            yield
        finally:
            with self._lock:
                self._helper = None


class _Helper:
    """One process; `ask` is called by one thread at a time."""

    def __init__(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.imaging.decode"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
            stderr=subprocess.DEVNULL,  # what Pillow and libtiff remark is not for people
        )  # fmt: skip

    def ask(self, what: str, raw: bytes, label: str) -> Any:
        """The answer; EOFError or OSError when the helper died of a limit."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(MOST_WAITING, self.process.kill)
        timer.start()
        try:
            _send(self.process.stdin, {"what": what, "label": label}, [raw])
            return _receive(self.process.stdout)
        finally:
            timer.cancel()

    def end(self) -> None:
        """Stop the process."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self.process.wait()


_lock = threading.Lock()
_helper: _Helper | None = None


def run(what: str, raw: bytes, label: str, stop: Stop | None = None) -> Found:
    """Do the work that `serve` knows as `what` in the helper.

    Raises:
        BadInput: as they do; code "exhausting" when a limit was reached.
        Cancelled: when `stop` was set meanwhile.
    """
    global _helper
    stop = stop or Stop()
    while not _lock.acquire(timeout=0.1):  # somebody else's file
        stop.check()
    try:
        if _helper is not None and _helper.process.poll() is not None:
            close()
        if _helper is None:
            _helper = _Helper()
        try:
            with stop.of(_helper):
                head, parts = _helper.ask(what, raw, label)
        except (EOFError, OSError) as exc:
            close()
            stop.check()
            raise BadInput(
                f'"{label}" took more than {MOST_SECONDS} s or {MOST_MEMORY / 2**30:.0f} GB to decode; scale '
                "it down, or save it as PNG or JPEG with another program.",
                code="exhausting",
            ) from exc
    finally:
        _lock.release()
    stop.check()
    if "error" in head:
        raise BadInput(head["error"], code=head["code"], field=head["field"])
    arrays = [
        np.frombuffer(part, np.uint8).reshape(shape) if shape else None
        for part, shape in zip(parts, head["shapes"], strict=True)
    ]
    return arrays, tuple(Notice(text, code) for text, code in head["notices"]), head["edit"]


def close() -> None:
    """End the helper; the next file starts another."""
    global _helper
    if _helper is not None:
        _helper.end()
        _helper = None


atexit.register(close)


def _send(pipe: Any, head: dict[str, Any], parts: list[Any]) -> None:
    text = json.dumps({**head, "sizes": [len(p) for p in parts]}).encode()
    pipe.write(struct.pack("<I", len(text)) + text)
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _receive(pipe: Any) -> tuple[dict[str, Any], list[bytearray]]:
    (length,) = struct.unpack("<I", _exactly(pipe, 4))
    head: dict[str, Any] = json.loads(_exactly(pipe, length))
    return head, [_exactly(pipe, size) for size in head["sizes"]]


def _exactly(pipe: Any, count: int) -> bytearray:
    raw = bytearray(count)
    view, done = memoryview(raw), 0
    while done < count:
        got = pipe.readinto(view[done:])
        if not got:
            raise EOFError
        done += got
    return raw


def _limit() -> None:
    """Allow ten more seconds, and the memory of one picture; not on Windows, which has no limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + MOST_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(work: Mapping[str, Callable[[bytes, str], Found]]) -> None:
    """The helper: answer until the parent closes the pipe."""
    while True:
        try:
            head, (given,) = _receive(sys.stdin.buffer)
            raw = bytes(given)
        except (EOFError, struct.error):
            return
        _limit()
        parts: list[Any] = []
        answer: dict[str, Any] = {"shapes": []}
        try:
            arrays, notices, edit = work[head["what"]](raw, head["label"])
            answer["notices"] = [(str(n), getattr(n, "code", "")) for n in notices]
            answer["edit"] = edit
            array: Any
            for array in arrays:
                answer["shapes"].append(list(array.shape) if array is not None else None)
                parts.append(
                    np.ascontiguousarray(array).data.cast("B") if array is not None else b""
                )
        except BadInput as exc:
            parts, answer = [], {"error": str(exc), "code": exc.code, "field": exc.field}
        _send(sys.stdout.buffer, answer, parts)
