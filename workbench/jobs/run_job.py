"""Carry out a job of any kind, in this process or in a worker with the app's history and cache."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from workbench.core.errors import BadInput
from workbench.core.record import (
    EditRecord,
    JobState,
    OnStep,
)
from workbench.core.request import EditRequest, GenerateTask, TrainTask
from workbench.jobs import Task
from workbench.storage.files import release

if TYPE_CHECKING:
    from workbench.app import App
    from workbench.editing.prepare import Engine


log = logging.getLogger(__name__)
Ask = Callable[[str, str, tuple[Any, ...], dict[str, Any]], Any]


def perform(app: App, task: Task) -> Any:
    """Do a job; the result is plain JSON data, an edit's id for "edit".

    Raises:
        BadInput: for an unknown kind.
        WorkbenchError: whatever the work raises.
    """
    if task.kind not in _KINDS:
        raise BadInput(
            f"There is no kind of job {task.kind!r}; known are: {', '.join(_KINDS)}.",
            code="unknown-kind",
        )
    device = "" if task.device == "auto" else task.device
    if task.id and device not in app.settings.devices():
        device = (
            ""  # a worker keeps the device it was started with; the settings have changed since
        )
    made = _KINDS[task.kind](
        app, task.payload, on_step=task.on_step, owner=task.owner, device=device
    )
    return made.id if isinstance(made, EditRecord) else made


def edit(
    app: App,
    request: EditRequest,
    *,
    on_step: OnStep,
    owner: str = "",
    device: str = "",
    fresh: bool = False,
) -> EditRecord:
    """One edit on the app's model, cache and history; see `workbench.edit.run_edit`."""
    from workbench.edit import run_edit

    engine, sparing = _engine(app, request, on_step, device)
    return run_edit(
        request,
        engine,
        on_step=on_step,
        owner=owner,
        fresh=fresh,
        low_memory=sparing,
    )


def _engine(app: App, request: EditRequest, on_step: OnStep, device: str) -> tuple[Engine, bool]:
    """The loaded model with cache and history; and whether the low-memory mode is needed."""
    from workbench.editing.prepare import Engine

    runtime = app.runtime(request.model.name, device=device, on_step=on_step)
    sparing = app.settings.low_memory or not app.need(request, str(runtime.device)).fits
    return Engine(runtime, app.cache, app.store), sparing


def train(app: App, task: TrainTask, *, on_step: OnStep, owner: str, device: str) -> dict[str, Any]:
    """Train and invert a picture; with a name, keep the LoRA in the library."""
    from workbench.edit import prepare

    engine, sparing = _engine(app, task.request, on_step, device)
    made = prepare(
        task,
        engine,
        on_step=on_step,
        low_memory=sparing,
    )
    if task.name:
        lora = made["lora_file"]
        raw = app.store.blob(lora["id"]) if lora else app.cache.get(made["lora"] or "")
        if raw is None:
            raise BadInput("No LoRA was trained, so there is none to keep by name.")
        app.loras.put(task.name, raw, replace=True)
        made["library"] = task.name
    return made


def generate(
    app: App, task: GenerateTask, *, on_step: OnStep, owner: str, device: str
) -> dict[str, Any]:
    """Make pictures from a prompt."""
    from workbench.editing import text_to_image

    runtime = app.runtime(task.model.name, device=device, on_step=on_step)
    return text_to_image.generate(
        task, runtime=runtime, cache=app.cache, store=app.store, on_step=on_step
    )


def download(
    app: App, payload: dict[str, Any], *, on_step: OnStep, owner: str, device: str
) -> dict[str, Any]:
    """Fetch a hub model."""
    from workbench.diffusion.registry.download import download, plan

    spec = app.registry.resolve(str(payload["model"]))
    chosen = plan(spec, full=bool(payload.get("full")))
    return {"model": spec.name, "folder": str(download(chosen, on_step)), "bytes": chosen.bytes}


def replay(
    app: App, payload: dict[str, Any], *, on_step: OnStep, owner: str = "", device: str = ""
) -> dict[str, Any]:
    """Recompute the edit `payload["edit"]` from its record and compare the pictures.

    The new edit is a record of its own. Returns `edit`, `replayed` (ids), `identical`, `max` and
    `mean` absolute difference (0..255), `expected` (the largest mean difference that these two
    environments explain, 0 for the same bits, None for another model), `as_expected`, and
    `environment` (what differs: old, new).

    Raises:
        BadInput: when there is no such edit, or it has no result.
        ModelError: when its model is not here.
    """
    from workbench.editing.memory import expected_difference

    edit_id = str(payload["edit"])
    record = app.store.record(edit_id)
    if record.result is None or record.status is not JobState.DONE:
        raise BadInput(f"The edit {edit_id} is {record.status.value}; only a finished one can be "
                       "replayed.")  # fmt: skip
    request = record.request
    here = app.model_ref(request.model.name)
    notices = []
    if here.fingerprint != request.model.fingerprint:
        notices.append(
            f"The files of the model {request.model.name!r} here are not those of the edit; expect "
            "another picture."
        )
        request = dataclasses.replace(request, model=here)
    _adopt_lora(app, edit_id, request)
    again = edit(app, request, on_step=on_step, owner=owner, device=device, fresh=True)
    assert again.result is not None
    before, after = app.store.image(record.result.image), app.store.image(again.result.image)
    difference = np.abs(before.astype(np.int16) - after)
    mean = round(float(difference.mean()), 6)
    expected: float | None = None
    if not notices:
        expected = expected_difference(record.environment, again.environment)
    return {
        "edit": edit_id,
        "replayed": again.id,
        "identical": bool(again.result.image == record.result.image),
        "max": int(difference.max()),
        "mean": mean,
        "expected": expected,
        "as_expected": expected is None or mean <= expected,
        "notices": notices,
        "environment": {
            name: [record.environment.get(name, ""), again.environment.get(name, "")]
            for name in sorted({*record.environment, *again.environment})
            if record.environment.get(name) != again.environment.get(name)
        },
    }


def _adopt_lora(app: App, edit_id: str, request: EditRequest) -> None:
    """Put the LoRA that was imported with an edit where its replay looks for it.

    Training again on another machine gives slightly other numbers. A file whose card names another
    model, picture, prompt or recipe is left alone.
    """
    name = app.store.notes(edit_id).lora
    key = app.stage_names(request).adapter
    if not name or key is None or request.lora_file is not None or app.cache.has(key):
        return
    from workbench.diffusion.lora_files import read

    raw = app.store.blob(name)
    try:
        card = read(raw, "The imported LoRA").card
    except BadInput as exc:
        log.warning("the LoRA that came with edit %s is not used: %s", edit_id, exc)
        return
    mine = (request.model.fingerprint, request.image.id, request.prompt, request.seed)
    recipe = dataclasses.asdict(request.lora)
    if (card.model, card.image, card.prompt, card.seed) == mine and dict(card.config) == recipe:
        app.cache.put(key, raw, kind="lora", label=request.image.name)


_KINDS: dict[str, Callable[..., Any]] = {
    "edit": edit,
    "train": train,
    "generate": generate,
    "download": download,
    "replay": replay,
}


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
    """Proxy through which a worker uses the app's history, cache and LoRA library."""

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
