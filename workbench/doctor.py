"""Check this installation: packages, device, memory, disk, models, cache and history."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import WEB, __version__
from workbench.core.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.app import App

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "streamlit",
            "streamlit-drawable-canvas", "diskcache", "pillow")  # fmt: skip
OPTIONAL = ("ray", "lpips")
_GB = 1e9
_LEAST_DISK = 1.0  # GB
_LEAST_MEMORY = 2.0  # GB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, `ok`, `warning` or `problem`, and what was found."""

    what: str
    state: str
    text: str


def examine(app: App, *, deep: bool = False) -> Iterator[Finding]:
    """Yield findings one by one; `deep` also reads every stored byte and loads the model."""
    yield Finding("workbench", "ok", f"{__version__} on Python {platform.python_version()}, "
                  f"{platform.system()} {platform.machine()}")  # fmt: skip
    yield from _packages()
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _device(app),
        lambda: _disk(app.settings.folder),
        lambda: _models(app, deep),
        lambda: _cache(app, deep),
        lambda: _history(app, deep),
    )
    for check in checks:
        try:
            yield from check()
        except (WorkbenchError, OSError, ImportError) as exc:
            yield Finding("check", "problem", str(exc))


def verdict(found: Sequence[Finding]) -> str:
    """All findings in one sentence."""
    said = [
        f"{n} {word}{'' if n == 1 else 's'}"
        for word in ("problem", "warning")
        if (n := sum(f.state == word for f in found))
    ]
    return f"{' and '.join(said)}; the rest is in order." if said else "Everything is in order."


def _packages() -> Iterator[Finding]:
    wanted = _pins()
    for name in PACKAGES:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "problem", f"missing; run 'pip install {name}=={wanted.get(name)}'")
            continue
        pin = wanted.get(name)
        plain = found.partition("+")[0]
        if pin and plain != pin:
            yield Finding(name, "warning", f"{found}; {pin} is what was tested")
        else:
            yield Finding(name, "ok", found)
    for name in OPTIONAL:
        if importlib.util.find_spec(name) is not None:
            yield Finding(name, "ok", f"{importlib.metadata.version(name)} (optional)")


def _pins() -> dict[str, str]:
    text = (WEB / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line)


def _device(app: App) -> Iterator[Finding]:
    from workbench.diffusion import device

    for name in dict.fromkeys(n.partition("@")[0] for n in app.settings.devices()):
        where = device.devices(name)[0]
        found = device.memory(where)
        text = f"{found.free / _GB:.1f} of {found.total / _GB:.1f} GB of memory free"
        if found.free < _LEAST_MEMORY * _GB:
            text += f"; an edit wants {_LEAST_MEMORY:.0f} GB, so close other programs"
            yield Finding(f"device {where}", "warning", text)
        elif where == "cpu" and _unused_gpus():
            text += (
                "; there is an NVIDIA GPU, but this torch is built without CUDA: see pytorch.org"
            )
            yield Finding(f"device {where}", "warning", text)
        else:
            yield Finding(f"device {where}", "ok", text)


def _unused_gpus() -> bool:
    """True if the system has NVIDIA GPUs that torch cannot use."""
    import torch

    return any(Path("/proc/driver/nvidia/gpus").glob("*")) and not torch.cuda.is_available()


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free / _GB
    text = f"{free:.1f} GB free in {folder}"
    if free >= _LEAST_DISK:
        yield Finding("disk", "ok", text)
    else:
        yield Finding(
            "disk", "warning", f"{text}; clear the cache, or set WORKBENCH_CACHE elsewhere"
        )


def _models(app: App, deep: bool) -> Iterator[Finding]:
    from workbench.diffusion.registry.files import find_files

    for spec in app.registry.specs():
        try:
            files = find_files(spec, app.registry)
        except WorkbenchError as exc:
            missing = "problem" if spec.name == app.settings.model else "ok"
            text = str(exc)
            if missing == "ok" and spec.hub:
                text = f"optional, not here: 'python -m workbench models download {spec.name}'"
            yield Finding(f"model {spec.name}", missing, text)
            continue
        chosen = ", chosen at first" if spec.name == app.settings.model else ""
        yield Finding(f"model {spec.name}", "ok", f"{files.bytes / 1e6:,.0f} MB{chosen}")
    if deep:
        run = app.runtime()
        yield Finding("loading", "ok", f"{run.name} as {run.dtype_name} on {run.device}")


def _cache(app: App, deep: bool) -> Iterator[Finding]:
    if app.cache.problem:
        yield Finding("cache", "problem", app.cache.problem)
        return
    entries = app.cache.entries()
    size = sum(e.bytes for e in entries) / _GB
    hits, misses = app.cache.hits()
    text = f"{size:.2f} of {app.settings.cache_gb:g} GB used, entries: {len(entries)}"
    text += f", reads: {hits} found, {misses} not"
    if deep:
        bad = app.cache.check()
        if bad:
            yield Finding("cache", "warning", f"{text}; {len(bad)} damaged (computed again)")
            return
        text += ", all checksums right"
    yield Finding("cache", "ok", text)


def _history(app: App, deep: bool) -> Iterator[Finding]:
    from workbench.storage.history.folder import disk_use, verify

    text = disk_use(app.store)
    for item in app.store.unreadable():
        yield Finding("history", "problem", f"{item.name} cannot be read: {item.reason}")
    if deep:
        for problem in verify(app.store).problems:
            yield Finding("history", "problem", f"{problem.where}: {problem.what}")
        text += ", every hash checked"
    yield Finding("history", "ok", text)
