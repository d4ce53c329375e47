"""Settings of the installation: `settings.json` in the cache folder, overruled by the environment.

WORKBENCH_CACHE      the folder itself        WORKBENCH_DEVICE   WORKBENCH_DTYPE
WORKBENCH_THREADS    WORKBENCH_CACHE_GB       WORKBENCH_MODEL    WORKBENCH_METHOD
WORKBENCH_WORKERS

Who may use the server, and whose work they see, is `workbench.ui.shell.gate`'s: WORKBENCH_HOSTS,
WORKBENCH_OWNERS, WORKBENCH_PROXY_SECRET.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from workbench import CHECKOUT
from workbench.core.config import METHODS, STRENGTHS
from workbench.core.errors import BadInput
from workbench.core.options import check, option, options_of
from workbench.storage.files import write_atomic

log = logging.getLogger(__name__)

# In a checkout its own cache/; elsewhere the folder that the system keeps for a program's data.
DEFAULT_FOLDER = CHECKOUT / "cache" if CHECKOUT else user_data_path("drag-workbench")
FILE = "settings.json"
MOST_WORKERS = 64
_CLUSTER = re.compile(r"ray://[A-Za-z0-9.\[\]:-]{1,200}")
ENVIRONMENT = {
    "device": "WORKBENCH_DEVICE",
    "dtype": "WORKBENCH_DTYPE",
    "threads": "WORKBENCH_THREADS",
    "cache_gb": "WORKBENCH_CACHE_GB",
    "model": "WORKBENCH_MODEL",
    "method": "WORKBENCH_METHOD",
    "workers": "WORKBENCH_WORKERS",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one installation; `ui` is the pages' own JSON."""

    folder: Path = DEFAULT_FOLDER
    device: str = option(
        "auto",
        "Device: auto, cpu, cuda, cuda:1, mps; several with commas get one worker each; all takes "
        "every CUDA device.",
    )
    dtype: str = option(
        "auto",
        "Precision of the weights; auto is fp16 on a GPU and fp32 elsewhere.",
        choices=("auto", "fp32", "fp16", "bf16"),
    )
    threads: int = option(0, "CPU threads; 0 leaves the choice to torch.", low=0, high=1024)
    workers: str = option(
        "1",
        "Workers: a number of threads, auto (one per GPU), ray (processes on this machine or on the "
        "cluster that RAY_ADDRESS names), or ray://HOST:PORT.",
    )
    low_memory: bool = option(
        False, "Always run in the low-memory mode (slower, needs less memory)."
    )
    model: str = option(
        "auto", "Model for new pictures; auto takes the shipped one that suits the picture."
    )
    method: str = option("auto", "Drag method that is chosen at first.", choices=METHODS)
    preset: str = option("normal", "Drag preset that is chosen at first.", choices=tuple(STRENGTHS))
    kept_models: int = option(1, "Loaded models that stay in memory per device.", low=1, high=8)
    cache_gb: float = option(
        4.0, "Size limit of the cache of LoRAs and latents.", low=0.01, high=10_000.0, unit="GB"
    )
    queue: int = option(64, "Jobs of one owner that may wait.", low=1, high=10_000)
    ui: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check all ranges.

        Raises:
            BadInput: naming the field, the value and the range.
        """
        object.__setattr__(self, "folder", Path(self.folder))
        check(self)
        number = self.workers.isdecimal() and 1 <= int(self.workers) <= MOST_WORKERS
        if not (number or self.workers in ("auto", "ray") or _CLUSTER.fullmatch(self.workers)):
            raise BadInput(
                f"workers is {self.workers!r:.60}; it must be 1 to {MOST_WORKERS}, auto, ray or "
                "ray://HOST:PORT.",
                code="out-of-range",
                field="workers",
            )

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Defaults, then `settings.json`, then the environment.

        A damaged file is reported in the log and counts as absent: settings are no reason not to
        start.

        Raises:
            BadInput: when an environment variable has a bad value; the text names the variable.
        """
        env = os.environ if environment is None else environment
        folder = Path(env.get("WORKBENCH_CACHE") or DEFAULT_FOLDER).expanduser().resolve()
        settings = cls(folder=folder, **_stored(folder / FILE))
        for name, variable in ENVIRONMENT.items():
            if env.get(variable):
                try:
                    settings = dataclasses.replace(settings, **{name: _typed(name, env[variable])})
                except (BadInput, ValueError) as exc:
                    raise BadInput(
                        f"The environment variable {variable} is wrong: {exc}",
                        code="environment",
                        field=variable,
                    ) from exc
        return settings

    def save(self) -> None:
        """Write `settings.json`.

        Raises:
            StoreError: when the disk refuses.
        """
        data = {name: getattr(self, name) for name in (*options_of(type(self)), "ui")}
        raw = json.dumps(data, indent=1, sort_keys=True).encode()
        write_atomic(self.folder / FILE, raw, temp=self.folder)

    @property
    def history(self) -> Path:
        """Folder of what is kept for ever."""
        return self.folder / "history"

    @property
    def derived(self) -> Path:
        """Folder of what can be computed again."""
        return self.folder / "derived"

    @property
    def models_file(self) -> Path:
        """`models.toml`: in the cache folder, or where WORKBENCH_MODELS points."""
        return Path(os.environ.get("WORKBENCH_MODELS") or self.folder / "models.toml")

    @property
    def cache_bytes(self) -> int:
        """Size limit of the cache in bytes."""
        return int(self.cache_gb * 10**9)

    @property
    def on_ray(self) -> bool:
        """True when jobs run in worker processes of Ray."""
        return self.workers.startswith("ray")

    def devices(self) -> list[str]:
        """The device of each worker thread; no torch is needed to say so.

        Further workers on one device are named "cpu@2", "cpu@3": each has a model of its own.
        """
        found = self._devices()
        more = int(self.workers) if self.workers.isdecimal() else 1
        return found + [
            f"{found[n % len(found)]}@{n // len(found) + 1}" for n in range(len(found), more)
        ]

    def _devices(self) -> list[str]:
        if self.device == "all" or (self.workers == "auto" and self.device == "auto"):
            count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
            return [f"cuda:{i}" for i in range(count)] or ["auto"]
        return [d.strip() for d in self.device.split(",") if d.strip()] or ["auto"]


def _stored(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
        known = {k: v for k, v in data.items() if k in options_of(Settings) or k == "ui"}
        if not isinstance(known.get("ui", {}), Mapping):
            raise BadInput("'ui' is not a JSON object")
        Settings(**known)
    except (OSError, ValueError, AttributeError, TypeError, BadInput) as exc:
        log.warning("%s is damaged (%s); the defaults are taken", path.name, exc)
        return {}
    return known


def _typed(name: str, text: str) -> Any:
    kind = options_of(Settings)[name][0]
    try:
        return kind(text)
    except ValueError as exc:
        raise BadInput(f"{text[:40]!r} is not a number.") from exc
