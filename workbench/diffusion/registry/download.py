"""Fetching a model from the hub: only when asked, with size and licence shown first, resumable.

Only what the workbench loads is fetched: no safety checker, no pickles, and of several precisions
one (half by default: it is what a GPU runs, and a CPU widens it).
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import BadInput, ModelError
from workbench.core.record import OnStep, StepInfo, ignore_steps
from workbench.diffusion.registry import ModelSpec

log = logging.getLogger(__name__)

_CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
)
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_MB = 2**20


@dataclass(frozen=True, slots=True)
class Plan:
    """Files of a download: (file, bytes) pairs of `hub` at `revision` (a commit)."""

    spec: ModelSpec
    revision: str
    licence: str
    files: tuple[tuple[str, int], ...]

    @property
    def bytes(self) -> int:
        """Size of everything together."""
        return sum(size for _, size in self.files)


def plan(spec: ModelSpec, *, full: bool = False, config_only: bool = False) -> Plan:
    """Ask the hub what there is, and choose.

    `full` takes the float32 weights where both are there; `config_only` no weights at all (enough
    to read a single-file checkpoint).

    Raises:
        BadInput: for a model that is not from the hub.
        ModelError: when the hub cannot be reached, or has no safetensors of a component.
    """
    if not spec.hub:
        raise BadInput(
            f"The model {spec.name!r} lies at {spec.path}; there is nothing to fetch.",
            code="nothing-to-fetch",
        )
    info = _reach(spec, lambda hub: hub.model_info(
        spec.hub, revision=spec.revision or None, files_metadata=True
    ))  # fmt: skip
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
    chosen = [n for n in sizes if n in _CONFIGS or _is_vocabulary(n)]
    if not config_only:
        for part, stem in _WEIGHTS.items():
            if f"{part}/config.json" in sizes:
                chosen.extend(_pick(spec, part, stem, sizes, full))
    card = info.card_data.to_dict() if info.card_data is not None else {}
    licence = str(card.get("license_name") or card.get("license") or spec.licence or "not stated")
    files = tuple((n, sizes[n]) for n in sorted(chosen))
    return Plan(spec, str(info.sha or spec.revision), licence, files)


def download(chosen: Plan, on_step: OnStep = ignore_steps) -> Path:
    """Fetch the files into Hugging Face's own cache; what is there already is not fetched again.

    Raises:
        Cancelled: from `on_step`; a file that was begun is resumed next time.
        ModelError: when the hub cannot be reached or the disk is full.
    """
    from huggingface_hub import hf_hub_download

    total, done, folder = max(1, chosen.bytes // _MB), 0, Path()
    for name, size in chosen.files:
        report = _reporting(on_step, done, total)
        report(0)
        try:
            path = hf_hub_download(
                chosen.spec.hub, name, revision=chosen.revision or None, tqdm_class=_bars(report)
            )
        except (OSError, ValueError) as exc:
            raise ModelError(
                f"{name} of {chosen.spec.hub} could not be fetched ({_reason(exc)}); run the same "
                "command again to go on where it stopped."
            ) from exc
        done += size
        folder = Path(path).parents[name.count("/")]
    on_step(StepInfo(stage="download", step=total, total=total))
    return folder


def _pick(spec: ModelSpec, part: str, stem: str, sizes: dict[str, int], full: bool) -> list[str]:
    plain = f"{part}/{stem}.safetensors"
    half = f"{part}/{stem}.fp16.safetensors"
    shards = [n for n in sizes if n.startswith(f"{part}/{stem}-") and n.endswith(".safetensors")]
    index = f"{part}/{stem}.safetensors.index.json"
    if half in sizes and not full:
        return [half]
    if plain in sizes:
        return [plain]
    if shards and index in sizes:
        return [index, *shards]
    if half in sizes:
        return [half]
    raise ModelError(
        f"{spec.hub} has no safetensors of its {part}; choose another model.", code="no-safetensors"
    )


def _is_vocabulary(name: str) -> bool:
    folder, _, file = name.partition("/")
    wanted = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
              "special_tokens_map.json", "added_tokens.json")  # fmt: skip
    return folder in ("tokenizer", "tokenizer_2") and file in wanted


def _reach(spec: ModelSpec, ask: Callable[[Any], Any]) -> Any:
    from huggingface_hub import HfApi

    try:
        return ask(HfApi())
    except Exception as exc:  # requests, httpx and the hub have a dozen kinds of failure
        log.debug("asking the hub about %s", spec.hub, exc_info=True)
        raise ModelError(
            f"The hub could not be asked about {spec.hub} ({_reason(exc)}). Without a network, copy "
            "the model's diffusers folder or its .safetensors file to this machine and give its "
            "path as the model.",
            code="no-network",
        ) from exc


def _reporting(on_step: OnStep, before: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        step = min(total, (before + done) // _MB)
        on_step(StepInfo(stage="download", step=step, total=total))

    return report


def _bars(report: Callable[[int], None]) -> type[Any]:
    """A stand-in for tqdm that reports bytes to us and draws nothing."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg,misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)
            self.seen = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.seen += int(n or 0)
            report(self.seen)
            return None

    return Bar


def _reason(exc: BaseException) -> str:
    said = " ".join(str(exc).split())
    if "offline mode is enabled" in said:
        return "this machine is told to stay offline: HF_HUB_OFFLINE is set"
    return textwrap.shorten(said, 160, placeholder=" …") or type(exc).__name__
