"""The composition root: settings -> history, cache, models, workers. Pages and command line use it.

    app = get_app()                        one per process
    job = app.submit_edit(request, owner)  -> job id; app.executor.snapshot(job) shows it
    app.perform("edit", request)           the same work, here and now (command line, benchmarks)

Importing and making an App is cheap: torch is imported by the first worker, or by `warm_up`.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from workbench.canvas.checklist import Finding, check_request
from workbench.core import keys
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import OnStep, ignore_steps
from workbench.core.request import EditRequest, GenerateTask, ModelRef, SweepTask, TrainTask
from workbench.diffusion.registry import BY_PICTURE, ModelSpec, Registry, suited
from workbench.diffusion.registry.files import find_files, fingerprint, native_size
from workbench.editing import crop_plan
from workbench.editing.crop_plan import Look, StageNames, look_of
from workbench.editing.lora_library import LoraLibrary
from workbench.jobs import Board, CancelToken, Job, Task, run_job
from workbench.jobs.queue import ThreadExecutor
from workbench.storage.cache import Cache
from workbench.storage.history import Store
from workbench.storage.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.diffusion.model import Runtime
    from workbench.editing.memory import Need
    from workbench.jobs.run_job import Host

log = logging.getLogger(__name__)


class App:
    """Everything that one process shares; threads may use it at the same time."""

    def __init__(self, settings: Settings | None = None, *, host: Host | None = None) -> None:
        """Open history and cache below `settings.folder`; what a dead process left is recorded.

        A worker in another process takes those of its `host` instead.

        Raises:
            StoreError: when the history folder cannot be used.
            BadInput: when `models.toml` is wrong.
        """
        self.settings = settings or Settings.load()
        self.registry = Registry(self.settings.models_file)
        if host is not None:
            self.store: Store = host.store
            self.cache: Cache = host.cache
            self.loras: LoraLibrary = host.loras
        else:
            self.store = Store(self.settings.history)
            self.store.recover()  # what a dead process left becomes "interrupted"
            self.cache = Cache(self.settings.derived, self.settings.cache_bytes)
            self.loras = LoraLibrary(self.settings.folder / "loras", self.store)
        self._executor: ThreadExecutor | None = None
        self._runtimes: dict[str, OrderedDict[str, Runtime]] = {}
        self._guard = threading.RLock()
        self._loading: dict[str, threading.Lock] = {}
        self._closed = False

    # --- settings and models --------------------------------------------------------------------------

    def change(self, **changes: Any) -> Settings:
        """Change settings, write them, and apply what can be applied at once (running jobs go on).

        Raises:
            BadInput: naming a field that is unknown or out of range.
            StoreError: when they cannot be written.
        """
        unknown = set(changes) - ({f.name for f in dataclasses.fields(Settings)} - {"folder"})
        if unknown:
            raise BadInput(f"There is no setting {sorted(unknown)[0]!r}.")
        with self._guard:
            before = self.settings
            settings = dataclasses.replace(before, **changes)
            settings.save()
            self.settings = settings
            self.cache.limit_bytes = settings.cache_bytes
            if (settings.device, settings.dtype) != (before.device, before.dtype):
                self._runtimes.clear()
            return settings

    def models(self) -> list[ModelSpec]:
        """All registered models."""
        return self.registry.specs()

    def model_for(self, rgb: NDArray[np.uint8] | None, name: str = "") -> str:
        """The model's name for a picture [H,W,3]: `name`, the settings' one, or the one that suits it."""
        wanted = name or self.settings.model
        if wanted != BY_PICTURE:
            return wanted
        return suited(rgb) if rgb is not None else self.registry.resolve(wanted).name

    def model_ref(self, name: str = "") -> ModelRef:
        """A model with its fingerprint; reads weight files the first time (no torch).

        Raises:
            BadInput: for an unknown name.
            ModelError: when its files are missing or damaged.
        """
        spec = self.registry.resolve(name or self.settings.model)
        files = find_files(spec, self.registry)
        mark = fingerprint(files, self._sums)
        return ModelRef(name=spec.name, revision=spec.revision, fingerprint=mark)

    def complete(self, request: EditRequest) -> EditRequest:
        """The request with its model's fingerprint, from which its keys are made.

        Raises:
            as `model_ref` does.
        """
        model = self.model_ref(request.model.name)
        return dataclasses.replace(request, model=model)

    def check(self, request: EditRequest) -> list[Finding]:
        """Findings about a request before it runs; the page's checklist, for any caller.

        Raises:
            StoreError: when the request's mask cannot be read.
        """
        mask = self.store.mask(request.mask.id) if request.mask is not None else None
        return check_request(request, mask)

    def prepared(self, request: EditRequest) -> tuple[bool, bool]:
        """Two flags: the request's LoRA and its inversion are in the cache (a LoRA of 0 steps counts).

        Raises:
            BadInput, ModelError: when the model is unknown or not here.
            StoreError: when picture or mask are missing.
        """
        names = self.stage_names(request)
        lora = names.adapter is None or request.lora_file is not None
        return lora or self.cache.has(names.adapter or ""), self.cache.has(names.latent)

    def lora_of(self, request: EditRequest) -> bytes | None:
        """The LoRA that a request's edit used, as a file: its own, or the trained one if it is kept.

        Raises:
            as `prepared` does.
        """
        if request.lora_file is not None:
            return self.store.blob(request.lora_file.id)
        names = self.stage_names(request)
        return self.cache.get(names.adapter) if names.adapter is not None else None

    def need(self, request: EditRequest, device: str = "") -> Need:
        """Memory that an edit needs, memory that is free, and a smaller setting that would fit.

        Imports torch (a second or more the first time): ask after `warm_up` or in a worker.

        Raises:
            BadInput, ModelError: when the model is unknown or not here.
        """
        from workbench.diffusion import device as devices
        from workbench.editing.memory import estimate

        where = devices.devices(device or self.settings.devices()[0].partition("@")[0])[0]
        spec = self.registry.resolve(request.model.name)
        files = find_files(spec, self.registry)
        dtype = self.settings.dtype
        if dtype == "auto":
            dtype = devices.dtype_name(where, files.bytes // 2)
        return estimate(
            request,
            files,
            native=native_size(files),
            device=where,
            dtype=dtype,
            loaded=(where, spec.name) in self.loaded(),
            trained=self.prepared(request)[0],
        )

    def stage_names(self, request: EditRequest) -> StageNames:
        """The cache keys of a request's stages; raises as `prepared` does."""
        spec = self.registry.resolve(request.model.name)
        native = native_size(find_files(spec, self.registry))
        if not request.model.fingerprint:
            request = self.complete(request)
        return crop_plan.stage_names(request, self.store, native)

    def look(self, request: EditRequest) -> Look | None:
        """Cached facts about the request's picture and model, or None; raises as `prepared`."""
        names = self.stage_names(request)
        raw = self.cache.get(names.look)
        return look_of(raw, names.crop.frame) if raw is not None else None

    @property
    def _sums(self) -> Any:
        return self.settings.folder / "fingerprints.json"

    def runtime(
        self, name: str = "", *, device: str = "", on_step: OnStep = ignore_steps
    ) -> Runtime:
        """The loaded model; kept for the next job, at most `kept_models` of them per device.

        Raises:
            BadInput, ModelError: as `model.load` does.
        """
        from workbench.diffusion import device as devices
        from workbench.diffusion import model as runtime

        devices.set_threads(self.settings.threads)
        wanted, at, copy = (device or self.settings.devices()[0]).partition("@")
        place = devices.devices(wanted)[0]
        where = place + at + copy  # every worker has a model of its own
        spec = self.registry.resolve(name or self.settings.model)
        with self._guard:
            lock = self._loading.setdefault(where, threading.Lock())
        with lock:  # one load at a time per device: a warm-up and a job do not load twice
            with self._guard:
                kept = self._runtimes.setdefault(where, OrderedDict())
                found = kept.get(spec.name)
                if found is not None and found.spec == spec:
                    kept.move_to_end(spec.name)
                    return found
                kept.pop(spec.name, None)
                while len(kept) >= self.settings.kept_models:
                    kept.popitem(last=False)
            devices.release()
            made = runtime.load(
                spec,
                device=place,
                dtype=self.settings.dtype,
                registry=self.registry,
                memory=self._sums,
                on_step=on_step,
            )
            with self._guard:
                self._runtimes.setdefault(where, OrderedDict())[spec.name] = made
            return made

    def loaded(self) -> list[tuple[str, str]]:
        """(device, model) of everything that is in memory."""
        with self._guard:
            return [(d, name) for d, kept in self._runtimes.items() for name in kept]

    def unload(self) -> None:
        """Let go of all loaded models; a running job keeps its own until it ends."""
        from workbench.diffusion import device as devices

        with self._guard:
            self._runtimes.clear()
        devices.release()

    def warm_up(self, name: str = "") -> threading.Thread:
        """Import torch, load a model and read the history in the background; failures are logged.

        The history keeps what it read: a page with 10,000 edits need not wait for it.
        """

        def work() -> None:
            try:
                self.runtime(name)
                self.store.records(binned=None)
            except Exception as exc:
                log.info("warm-up: %s", exc)

        thread = threading.Thread(target=work, name="warm-up", daemon=True)
        thread.start()
        return thread

    # --- jobs -----------------------------------------------------------------------------------------

    @property
    def executor(self) -> ThreadExecutor:
        """The queue and its workers, made at the first use."""
        with self._guard:
            if self._executor is None:
                if self._closed:
                    raise BadInput("The workbench is closing; no new job is taken.", code="closing")
                run = functools.partial(run_job.perform, self)
                board = Board(self.settings.folder / "jobs")
                if self.settings.on_ray:
                    try:
                        from workbench.jobs.ray_executor import for_app
                    except ImportError as exc:
                        raise BadInput(
                            f"The setting workers is {self.settings.workers!r}, but Ray cannot be "
                            f"imported ({exc}); install it (pip install ray) or set workers to 1.",
                            code="no-ray",
                            field="workers",
                        ) from exc
                    self._executor = for_app(self.settings, run_on_worker, run, vars(self), board)
                else:
                    self._executor = ThreadExecutor(
                        run,
                        devices=self.settings.devices(),
                        limit=self.settings.queue,
                        board=board,
                    )
            return self._executor

    def submit_edit(self, request: EditRequest, owner: str = "") -> str:
        """Queue an edit; the job's id. Its result is the edit's id. A double click gives one job."""
        key = keys.edit_key(request)
        quick = self._is_quick(request)
        return self._submit("edit", request, owner, key, request.image.name, quick=quick)

    def _is_quick(self, request: EditRequest) -> bool:
        """True for an edit of seconds: nothing has to be trained first."""
        try:
            return request.lora.steps == 0 or self.prepared(request)[0]
        except WorkbenchError:
            return False  # its job says what is wrong

    def submit_train(self, task: TrainTask | EditRequest, owner: str = "") -> str:
        """Queue the training and inversion of a picture; the result is a `Prepared` as JSON."""
        if isinstance(task, EditRequest):
            task = TrainTask(request=task)
        return self._submit("train", task, owner, keys.key("train", task.to_json()), task.label)

    def submit_generate(self, task: GenerateTask, owner: str = "") -> str:
        """Queue the making of pictures from a prompt; the result lists them as JSON."""
        name = keys.key("generate", task.to_json())
        return self._submit("generate", task, owner, name, task.prompt[:60])

    def submit_sweep(
        self, requests: list[EditRequest] | SweepTask, owner: str = "", label: str = ""
    ) -> str:
        """Queue several edits as one job that all workers share.

        Its result is `{"edits": [id or None], "errors": {number: sentence}, "label": text}`.
        """
        task = requests if isinstance(requests, SweepTask) else SweepTask(tuple(requests), label)

        def collect(edits: list[Job]) -> dict[str, Any]:
            errors = {str(n): str(job.error) for n, job in enumerate(edits) if job.error}
            return {"edits": [job.result for job in edits], "errors": errors, "label": task.label}

        parts = [("edit", request) for request in task.requests]
        key = keys.key("sweep", task.to_json())
        return self.executor.submit_parts(
            "sweep", task, parts, collect, owner, key=key, label=task.label
        )

    def submit_download(self, name: str, owner: str = "", *, full: bool = False) -> str:
        """Queue the download of a hub model."""
        payload = {"model": name, "full": full}
        return self._submit("download", payload, owner, keys.key("download", payload), name)

    def submit_replay(self, edit: str, owner: str = "") -> str:
        """Queue the recomputing of an edit; the result says how far the pictures differ."""
        return self._submit("replay", {"edit": edit}, owner, keys.key("replay", edit), edit)

    def _submit(
        self, kind: str, payload: Any, owner: str, key: str, label: str, *, quick: bool = False
    ) -> str:
        return self.executor.submit(kind, payload, owner, key=key, label=label, quick=quick)

    def perform(
        self,
        kind: str,
        payload: Any,
        *,
        on_step: OnStep = ignore_steps,
        owner: str = "",
        device: str = "",
    ) -> Any:
        """Do a job here and now; plain JSON data as the result (an edit's id for "edit").

        Raises:
            WorkbenchError: whatever the work raises.
        """
        task = Task("", kind, payload, owner, device, CancelToken(), on_step)
        return run_job.perform(self, task)

    # --- end ------------------------------------------------------------------------------------------

    def close(self, timeout: float = 4.0) -> None:
        """Stop the workers (what runs becomes interrupted) and let go of the folders."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.close(timeout)
        self.store.close()


_app: App | None = None
_lock = threading.Lock()


def get_app() -> App:
    """The App of this process; made at the first call, closed when the process ends."""
    global _app
    with _lock:
        if _app is None:
            _app = App()
            atexit.register(close_app)
        return _app


def close_app() -> None:
    """Close the App of this process; the next `get_app` makes a new one."""
    global _app
    with _lock:
        if _app is not None:
            _app.close()
            _app = None


_worker_app: App | None = None


def run_on_worker(settings: Settings, task: Task) -> Any:
    """A job in a worker's process, whose App uses history and cache of the app that sent the task."""
    global _worker_app
    with _lock:
        if _worker_app is None:
            if not settings.folder.is_dir():  # another machine: its own list of models counts
                settings = dataclasses.replace(settings, folder=Settings.load().folder)
            _worker_app = App(settings, host=task.host)
    return run_job.perform(_worker_app, dataclasses.replace(task, id=""))
