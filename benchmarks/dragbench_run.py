"""`bench dragbench` at work: every sample by every method, through the one engine.

LoRA noise and the features' noise are seeded by each sample's content: neither the order of a
directory nor what was measured before changes a figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.distances import Distances, Extractor
from benchmarks.locate import seed_of
from benchmarks.readers import Entry, Sample
from benchmarks.rows import ResultLog, requests_by_method
from benchmarks.scenes_run import machine
from benchmarks.shared import carry_out
from workbench.app import App
from workbench.core import keys
from workbench.core.config import SPECS
from workbench.core.errors import BadInput, ModelError
from workbench.core.record import OnStep
from workbench.core.request import EditRequest
from workbench.diffusion import model
from workbench.diffusion.model import Runtime
from workbench.diffusion.registry.files import find_files
from workbench.editing.memory import environment
from workbench.editing.prepare import Engine
from workbench.imaging.decode import clean_name, encode_png
from workbench.storage.files import write_atomic
from workbench.storage.history import Store
from workbench.warping.layers import moved_picture

U8 = NDArray[np.uint8]
DIFT_MODEL = "sd21"  # in the registry


class Run:
    """One run over a set."""

    def __init__(
        self, app: App, args: argparse.Namespace, on_step: OnStep, say: Callable[[str], None]
    ) -> None:
        """Load the models; the edits go into a history of the benchmark's own."""
        self.app, self.args, self.on_step, self.say = app, args, on_step, say
        self.runtime: Runtime = app.runtime(args.model or "", on_step=on_step)
        self.extractor, sentence = extractor_for(app, self.runtime)
        self.lpips, about_lpips = metrics.lpips()
        self.notes = [sentence, about_lpips]
        for text in self.notes:
            say(text)
        self.store = Store(app.settings.folder / "bench" / "history")
        self.methods: Sequence[str] = args.method

    def close(self) -> None:
        """Close the benchmark's history."""
        self.store.close()

    def run(self, entries: Sequence[Entry], log: ResultLog) -> int:
        """Measure what the log lacks; returns how many samples could not be read.

        Raises:
            Cancelled: between or inside edits; the log keeps what was measured.
            BadInput: when the log holds figures of another model or preparation.
        """
        log.begin(self.setup(entries))
        refused = 0
        for number, entry in enumerate(entries, 1):
            try:
                sample = entry.read()
            except BadInput as exc:
                refused += 1
                log.add({"kind": "refused", "sample": entry.name, "why": str(exc)})
                self.say(f"{number} {entry.name}: refused: {exc}")
                continue
            self._sample(number, sample, log)
        return refused

    def _sample(self, number: int, sample: Sample, log: ResultLog) -> None:
        base = self._request(sample)
        distances = Distances(sample, self.extractor)
        for method, request in requests_by_method(base, self.methods).items():
            edit = None if request is None else keys.edit_key(request)
            if log.has(sample.key, method, edit):
                continue
            row: dict[str, Any] = {"kind": "row", **about(sample), "method": method,
                                   "edit_key": edit}  # fmt: skip
            result = self._result(method, request, sample, row)
            if result is not None:
                row |= self._figures(sample, result, distances)
                self._keep(method, sample, result)
            log.add(row)
            self.say(f"{number} {sample.name}: {method} {self._line(row)}")

    def _line(self, row: dict[str, Any]) -> str:
        if row.get("error"):
            return f"failed: {row['error']}"
        name = f"{self.extractor.prefix}_global"
        return f"{name} {row[name]:.1f} px, SSIM {row['ssim']:.3f}, {row['wall']:.1f} s"

    # --- the parts of a sample ------------------------------------------------------------------------

    def _request(self, sample: Sample) -> EditRequest:
        mask = self.store.put_mask(sample.mask) if sample.mask is not None else None
        return EditRequest(
            image=self.store.put_image(sample.rgb, sample.name),
            mask=mask,
            pairs=sample.pairs,
            prompt=sample.prompt,
            model=self.runtime.ref,
            lora=self.args.lora,
            inversion=self.args.inversion,
            seed=seed_of(sample.key),
            working_size=self.args.working_size,
            crop=False,  # the published programs edit the whole picture
        )

    def _result(
        self, method: str, request: EditRequest | None, sample: Sample, row: dict[str, Any]
    ) -> U8 | None:
        """A method's picture, and in `row` what the edit says of itself; None when it failed."""
        wall, cpu = time.perf_counter(), time.process_time()
        result: U8 | None
        if request is None:
            result = _pseudo(method, sample)
        else:
            engine = Engine(self.runtime, self.app.cache, self.store)
            found = carry_out(request, engine, self.on_step, row)
            if found is None:
                return None
            result = self.store.image(found.image)
        row["wall"] = round(time.perf_counter() - wall, 3)
        row["cpu"] = round(time.process_time() - cpu, 3)
        return result

    def _figures(self, sample: Sample, result: U8, distances: Distances) -> dict[str, Any]:
        """All figures of a result; lists are per pair, as the pooled means need them."""
        out: dict[str, Any] = {}
        for name, found in distances(result).items():
            key = f"{self.extractor.prefix}_{name}"
            out[key] = float(np.mean(found))
            out[f"{key}_each"] = [round(v, 5) for v in found]
        for radius in metrics.DAI_RADII:
            out[f"dai_{radius}"] = metrics.dai(sample.rgb, result, sample.pairs, radius)
        out["ssim"] = metrics.ssim(result, sample.rgb)
        if self.lpips is not None:
            out["lpips"] = self.lpips(sample.rgb, result)
            out["image_fidelity"] = 1 - out["lpips"]  # as DragDiffusion's tables call it
        if sample.mask is not None:
            out["outside_max"], out["outside_mean"] = metrics.change_outside(
                result, sample.rgb, sample.mask
            )
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in out.items()}

    def _keep(self, method: str, sample: Sample, result: U8) -> None:
        top: Path | None = self.args.pictures
        if top is None:
            return
        parts = [clean_name(p, "sample").lstrip(".") or "sample" for p in sample.name.split("/")]
        path = top.joinpath(method, *parts, "dragged_image.png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise BadInput(f"{path.parent} cannot be made ({exc.strerror}).") from exc
        write_atomic(path, encode_png(result), temp=path.parent)

    # --- the head of the file -------------------------------------------------------------------------

    def setup(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Everything that figures may depend on."""
        return {
            "benchmark": "dragbench", "samples": len(entries),
            "layouts": sorted({e.kind for e in entries}),
            "model": self.runtime.fingerprint, "model_name": self.runtime.name,
            "lora": dataclasses.asdict(self.args.lora),
            "inversion": dataclasses.asdict(self.args.inversion),
            "working_size": self.args.working_size, "methods": list(self.methods),
            "drag": {m: dataclasses.asdict(SPECS[m].drag_config()) for m in self.methods
                     if m in SPECS},
            "inversion_strength": {
                m: SPECS[m].inversion_config(steps=self.args.inversion.steps).strength
                for m in self.methods if m in SPECS
            },
            "locator": self.extractor.name, "notes": self.notes,
            "environment": environment(self.runtime), **machine(),
        }  # fmt: skip


def extractor_for(app: App, loaded: Runtime) -> tuple[Extractor, str]:
    """The features to compare, and a sentence that says whose they are.

    DIFT's where Stable Diffusion 2.1 is on this disk, loaded beside the model that edits; else the
    loaded model's own. Nothing is downloaded.
    """
    spec = app.registry.resolve(DIFT_MODEL)
    try:
        find_files(spec, app.registry)
    except (BadInput, ModelError):
        found = Extractor.of(loaded)
        return found, (
            f"Stable Diffusion 2.1, whose features the published mean distance is of, is not on this "
            f"disk: distances are of {found.name} and called own_..., not md_...; they do not compare "
            "with published tables."
        )
    if loaded.spec != spec or loaded.dtype_name != "fp32":
        loaded = model.load(
            spec, device=str(loaded.device), dtype="fp32", registry=app.registry,
            memory=app.settings.folder / "fingerprints.json",
        )  # fmt: skip
    found = Extractor.of(loaded)
    return found, f"Mean distance: {found.name}."


def about(sample: Sample) -> dict[str, Any]:
    """The fields that identify a sample in a row; `drag` is its key by content."""
    return {
        "drag": sample.key, "sample": sample.name, "category": sample.category,
        "size": [int(sample.rgb.shape[1]), int(sample.rgb.shape[0])], "pairs": len(sample.pairs),
        "painted": None if sample.mask is None else round(float(sample.mask.mean()), 4),
    }  # fmt: skip


def _pseudo(method: str, sample: Sample) -> U8:
    """Baselines: the untouched source, or its pixels pushed along the arrows."""
    if method == "nothing":
        return sample.rgb
    return moved_picture(sample.rgb, sample.mask, sample.pairs)
