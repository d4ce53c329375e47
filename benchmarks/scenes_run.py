"""`bench scenes` at work: prepare each picture once, then every method on it, through the one engine.

Seconds are told apart: `prepared` (LoRA, inversion, the original's pass; shared by all methods) and
each row's own (the drag, denoising, decoding, saving). CPU seconds are those of this process: with
one thread they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import metrics
from benchmarks.judge import Evaluator
from benchmarks.rows import ResultLog, requests_by_method
from benchmarks.scenes import AnyDrag, Pictures
from benchmarks.shared import carry_out
from workbench.app import App
from workbench.core import keys
from workbench.core.config import SPECS
from workbench.core.record import OnStep
from workbench.core.request import EditRequest, TrainTask
from workbench.diffusion.device import processor
from workbench.diffusion.model import Runtime
from workbench.edit import prepare
from workbench.editing.memory import environment
from workbench.editing.own_pixels import Candidates
from workbench.editing.prepare import Engine
from workbench.editing.text_to_image import to_rgb
from workbench.storage.history import Store
from workbench.warping.layers import moved_picture

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Say = Callable[[str], None]
SEED = 0  # of every edit: LoRA's noise
DOUBTFUL = 0.3  # doubt from which on the draft is drawn (docs/algorithm.md 2.4)


class Scenes:
    """One run over a part of a set of drags; `head` names the set in the result file."""

    def __init__(
        self,
        app: App,
        args: argparse.Namespace,
        drags: Sequence[AnyDrag],
        head: Mapping[str, Any],
        on_step: OnStep,
        say: Say,
    ) -> None:
        """Load the model; the edits go into a history of the benchmark's own."""
        self.args, self.app, self.on_step, self.say = args, app, on_step, say
        self.runtime: Runtime = app.runtime(args.model or "", on_step=on_step)
        if args.threads:
            torch.set_num_threads(args.threads)
        self.store = Store(app.settings.folder / "bench" / "history")
        shard, shards = args.shard
        self.drags = [d for d in drags if d.index % shards == shard - 1]
        self.head = head
        self.methods: Sequence[str] = args.method

    def close(self) -> None:
        """Close the benchmark's history."""
        self.store.close()

    def run(self, log: ResultLog) -> None:
        """Measure what the log lacks.

        Raises:
            Cancelled: between or inside edits; the log keeps what was measured.
        """
        if not self.drags:
            return
        log.begin(self.setup())
        for drag in self.drags:
            self._drag(drag, log)

    def _drag(self, drag: AnyDrag, log: ResultLog) -> None:
        pictures = drag.pictures()
        base = self._request(drag, pictures)
        wanted: dict[str, EditRequest | None] = {}
        for method, request in requests_by_method(base, self.methods).items():
            edit = None if request is None else keys.edit_key(request)
            if not log.has(drag.key, method, edit) or self._unjudged(drag, method, log):
                wanted[method] = request
        if not wanted:
            return
        evaluator = Evaluator(drag, pictures, self.runtime)
        inversions = {
            r.inversion: r for r in wanted.values() if r is not None and not r.drag.drafts
        }
        if inversions:
            self._prepare(drag, list(inversions.values()), log)
        for method, request in wanted.items():
            row: dict[str, Any] = {"kind": "row", **about(drag), "method": method}
            seen: list[Candidates] = []
            if request is None:
                result = self._pseudo(method, drag, pictures, row)
            else:
                made = self._edit(request, row, seen.append if self.args.judge else None)
                if made is None:
                    log.add(row)
                    self.say(f"{drag.index + 1} {drag.key}: {method} failed: {row['error']}")
                    continue
                result = made
            for both in seen:
                row |= in_doubt(pictures, result, both.doubt)
                self._candidates(row, both, evaluator, log)
            row |= evaluator(result)
            log.add(row)
            self.say(
                f"{drag.index + 1} {drag.key}: {method} left {row['left_features']:.1f} / "
                f"{row['left_template']:.1f} of {drag.length:.1f} px, error {row['mae_ratio']:.2f}, "
                f"{row['cpu']:.1f} CPU s"
            )

    # --- the parts of a drag --------------------------------------------------------------------------

    def _unjudged(self, drag: AnyDrag, method: str, log: ResultLog) -> bool:
        """True if a row chose between candidates that the log lacks, and they are asked for."""
        rows = log.rows()
        chose = rows.get((drag.key, method), {}).get("choice")
        return bool(self.args.judge and chose and (drag.key, f"{method}:moved") not in rows)

    def _candidates(
        self, row: dict[str, Any], both: Candidates, evaluator: Evaluator, log: ResultLog
    ) -> None:
        """Measure the pictures that the method of `row` chose between, a row each."""
        same = {k: v for k, v in row.items() if k not in ("wall", "cpu", "seconds", "choice")}
        for name, picture in (("moved", both.moved), ("drawn", both.made)):
            log.add({
                **same, "method": f"{row['method']}:{name}",
                "image": self.store.put_image(picture, row["drag"]).id,
                **in_doubt(evaluator.pictures, picture, both.doubt), **evaluator(picture),
            })  # fmt: skip

    def _request(self, drag: AnyDrag, pictures: Pictures) -> EditRequest:
        return EditRequest(
            image=self.store.put_image(pictures.source, drag.key),
            mask=self.store.put_mask(pictures.mask),
            pairs=drag.pairs,
            prompt=drag.caption,
            model=self.runtime.ref,
            lora=self.args.lora,
            inversion=self.args.inversion,
            seed=SEED,
        )

    def _prepare(self, drag: AnyDrag, requests: Sequence[EditRequest], log: ResultLog) -> None:
        """LoRA, inversions and the original's passes, so that no method pays for them.

        `requests` has one request per inversion; the row tells the first one's figures and the time
        of all.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        made, *_ = [
            prepare(
                TrainTask(request=request), Engine(self.runtime, self.app.cache, self.store),
                on_step=self.on_step,
            )
            for request in requests
        ]  # fmt: skip
        log.add({
            "kind": "prepared", "drag": drag.key, "index": drag.index,
            "wall": round(time.perf_counter() - wall, 3),
            "cpu": round(time.process_time() - cpu, 3),
            "seconds": made["seconds"], "cached": made["cached"],
            "psnr": made["psnr"], "losses": [round(v, 5) for v in made["losses"][-5:]],
        })  # fmt: skip

    def _edit(
        self,
        request: EditRequest,
        row: dict[str, Any],
        on_candidates: Callable[[Candidates], object] | None,
    ) -> U8 | None:
        """A method's result, and in `row` what the edit says of itself; None when it failed."""
        row["edit_key"] = keys.edit_key(request)
        wall, cpu = time.perf_counter(), time.process_time()
        engine = Engine(self.runtime, self.app.cache, self.store, on_candidates)
        found = carry_out(request, engine, self.on_step, row)
        if found is None:
            return None
        _times(row, wall, cpu)
        row |= {
            "image": found.image, "own_left": [round(v, 2) for v in found.distances],
            "last_loss": found.losses[-1] if found.losses else None,
            "choice": dict(found.choice), "knows": dict(found.knows),
        }  # fmt: skip
        return self.store.image(found.image)

    def _pseudo(self, method: str, drag: AnyDrag, pictures: Pictures, row: dict[str, Any]) -> U8:
        """The picture of a sanity row, which no method made."""
        wall, cpu = time.perf_counter(), time.process_time()
        row["edit_key"] = None
        if method == "nothing":
            result = pictures.source
        elif method == "truth":
            result = pictures.truth
        elif method == "moved":
            result = moved_picture(pictures.source, pictures.mask, drag.pairs)
        else:
            result = self._roundtrip(pictures.truth)
        _times(row, wall, cpu)
        row |= {"steps": 0, "stop": "", "image": self.store.put_image(result, drag.key).id}
        return result

    @torch.no_grad()
    def _roundtrip(self, rgb: U8) -> U8:
        """Through the autoencoder and back: what no latent method can be better than."""
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
        with self.runtime.job():
            mean, _ = self.runtime.encode(pixels)
            return np.asarray(to_rgb(self.runtime.decode(mean)))

    # --- the head of the file -------------------------------------------------------------------------

    def setup(self) -> dict[str, Any]:
        """Everything that figures may depend on."""
        shard, shards = self.args.shard
        evaluator = Evaluator(self.drags[0], self.drags[0].pictures(), self.runtime)
        return {
            **self.head,
            "drags": self.args.drags, "shard": [shard, shards], "seed": SEED,
            "model": self.runtime.fingerprint, "model_name": self.runtime.name,
            "lora": dataclasses.asdict(self.args.lora),
            "inversion": dataclasses.asdict(self.args.inversion),
            "methods": list(self.methods),
            "drag": {m: dataclasses.asdict(SPECS[m].drag_config()) for m in self.methods
                     if m in SPECS},
            "inversion_strength": {
                m: SPECS[m].inversion_config(steps=self.args.inversion.steps).strength
                for m in self.methods if m in SPECS
            },
            "locators": evaluator.locators, "environment": environment(self.runtime), **machine(),
        }  # fmt: skip


def in_doubt(pictures: Pictures, result: U8, doubt: F32) -> dict[str, Any]:
    """Errors to the truth in the part of the changed region where the move cannot be trusted.

    `doubt` [H, W] in 0..1. Returns `open_mae` (0..255), `open_ssim`, both NaN where nothing there is
    doubtful, and `open_share` of the region. They are not relative to doing nothing, which may be right
    there by chance.
    """
    truth, region = pictures.truth, pictures.region & (doubt > DOUBTFUL)
    return {
        "open_mae": round(metrics.mae(result, truth, region), 3),
        "open_ssim": round(metrics.ssim(result, truth, region), 5),
        "open_share": round(float(region.sum()) / max(1, int(pictures.region.sum())), 5),
    }


def about(drag: AnyDrag) -> dict[str, Any]:
    """The fields that identify a drag in a row."""
    return {
        "drag": drag.key, "index": drag.index, "scene": drag.kind, "size": drag.bucket_name,
        "pairs": len(drag.pairs), "length": round(drag.length, 3),
        "arrows": [[round(v, 3) for v in p.to_json()] for p in drag.pairs],
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """The computer and the code's version."""
    cores = os.cpu_count() or 1
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603
                ["git", "-C", str(root), *words],  # noqa: S607
                capture_output=True, text=True, check=True, timeout=20,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return ""  # an installation need not be a clone
        return done.stdout.strip()

    return {
        "git": git("rev-parse", "HEAD") or "unknown",
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": f"{platform.system()} {platform.machine()}, {cores} cores, {processor()}",
    }


def _times(row: dict[str, Any], wall: float, cpu: float) -> None:
    row["wall"] = round(time.perf_counter() - wall, 3)
    row["cpu"] = round(time.process_time() - cpu, 3)
