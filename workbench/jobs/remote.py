"""History, cache and LoRA library of the app's process, used from a worker in another process.

The worker asks, the app's process answers: pictures and LoRAs go over by value, so no disk is
shared, records are committed in one place, and a key of the cache is computed once for all workers.

    worker:  Host(ask).store.image(id)  ->  ask("store", "image", (id,), {})
    app:     Session(parts).answer("store", "image", (id,), {})
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from filelock import FileLock

from workbench.core.errors import BadInput
from workbench.core.record import JobState
from workbench.core.request import EditRequest
from workbench.storage.files import release

Ask = Callable[[str, str, tuple[Any, ...], dict[str, Any]], Any]

PARTS: Mapping[str, frozenset[str]] = {
    "store": frozenset(
        [
            "begin",
            "finish",
            "image",
            "mask",
            "blob",
            "put_image",
            "put_mask",
            "put_blob",
            "record",
            "notes",
        ]
    ),
    "cache": frozenset(("get", "has", "put", "claim", "release")),
    "loras": frozenset(("put",)),
    "log": frozenset(("add",)),  # of a benchmark
}
_KEPT = 6  # pictures and files of the history that a worker remembers
_POLL = 0.1  # seconds between two questions whether another worker has computed a key


class _Part:
    """One part of the host; its methods are questions."""

    def __init__(self, name: str, ask: Ask) -> None:
        self._name, self._ask = name, ask

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method not in PARTS[self._name]:
            raise AttributeError(f"a worker cannot use {self._name}.{method}")
        return lambda *args, **kwargs: self._ask(self._name, method, args, kwargs)


class _Store(_Part):
    """The history. What is named by its content never changes, so it is remembered."""

    def __init__(self, ask: Ask) -> None:
        super().__init__("store", ask)
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def image(self, name_id: str) -> Any:
        return np.array(self._remembered("image", name_id))  # ours to write to

    def mask(self, name_id: str) -> Any:
        return np.array(self._remembered("mask", name_id))

    def blob(self, name_id: str) -> Any:
        return self._remembered("blob", name_id)

    def _remembered(self, method: str, name_id: str) -> Any:
        key = (method, name_id)
        if key not in self._kept:
            self._kept[key] = self._ask("store", method, (name_id,), {})
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


class _Cache(_Part):
    """The cache; `get_or_make` as in storage.cache, but across processes and machines."""

    def __init__(self, ask: Ask) -> None:
        super().__init__("cache", ask)

    def get_or_make(
        self,
        key: str,
        make: Callable[[], bytes],
        *,
        kind: str,
        label: str = "",
        on_wait: Callable[[], None] | None = None,
    ) -> tuple[bytes, bool]:
        while True:
            mine, raw = self._ask("cache", "claim", (key,), {})
            if raw is not None:
                return raw, True
            if mine:
                break
            if on_wait is not None:
                on_wait()
            time.sleep(_POLL)
        try:
            raw = make()
            self._ask("cache", "put", (key, raw), {"kind": kind, "label": label})
            return raw, False
        finally:
            self._ask("cache", "release", (key,), {})


class Host:
    """What a worker has instead of history, cache and LoRA library of its own."""

    def __init__(self, ask: Ask) -> None:
        """`ask` brings a question to the app's process and returns the answer, or raises it."""
        self.store: Any = _Store(ask)
        self.cache: Any = _Cache(ask)
        self.loras: Any = _Part("loras", ask)
        self.log: Any = _Part("log", ask)


class Session:
    """The app's side while one worker has one job: answers, and cleans up after a dead worker."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        """`parts` has the app's `store`, `cache` and `loras`."""
        self._parts = parts
        self._claims: dict[str, FileLock | None] = {}
        self._begun: dict[str, EditRequest] = {}
        self.finished: list[str] = []  # ids of the edits that were committed

    def answer(self, part: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out a worker's question; raises what the part raises.

        Raises:
            BadInput: for a method that workers may not use.
        """
        if method not in PARTS.get(part, ()):
            raise BadInput(f"A worker may not use {part}.{method}.")
        if part == "cache" and method in ("claim", "release"):
            return getattr(self, f"_{method}")(*args)
        result = getattr(self._parts[part], method)(*args, **kwargs)
        if (part, method) == ("store", "begin"):
            self._begun[result] = args[0]
        elif (part, method) == ("store", "finish"):
            self._begun.pop(args[0].id, None)
            self.finished.append(args[0].id)
        return result

    def lost(self, status: JobState | None, error: str) -> None:
        """Close the edits that the dead worker had begun: with this end, or (None) without a record."""
        for name in list(self._begun):
            self._parts["store"].end_pending(name, status, error)
            del self._begun[name]

    def close(self) -> None:
        """Release what the worker still claims."""
        for key in list(self._claims):
            self._release(key)

    def _claim(self, key: str) -> tuple[bool, bytes | None]:
        """(True, None): compute it; (False, value): it is there; (False, None): wait and ask again."""
        cache = self._parts["cache"]
        found = cache.get(key)
        if found is not None:
            return False, found
        lock = cache.try_lock(key)
        if lock is None:
            return False, None
        self._claims[key] = lock
        found = cache.get(key)  # another one may have stored it between the two looks
        if found is not None:
            self._release(key)
            return False, found
        return True, None

    def _release(self, key: str) -> None:
        lock = self._claims.pop(key, None)
        if lock is not None and lock.is_locked:
            release(lock)
