"""`doctor`: check this installation, and with `--model M --drag` whether a model works on it."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from workbench import __version__, doctor
from workbench.app import App
from workbench.canvas.drawing import Drawing
from workbench.canvas.rasterize import rasterise
from workbench.core.config import DragConfig
from workbench.core.errors import BadInput, WorkbenchError
from workbench.core.record import OnStep, convergence, ignore_steps
from workbench.core.request import EditRequest, ModelRef, TrainTask
from workbench.imaging import decode
from workbench.sweeps.results import verdict

if TYPE_CHECKING:
    import torch

    from workbench.diffusion.model import Runtime

U8 = NDArray[np.uint8]

_MARKS = {"ok": "ok", "warning": "! ", "problem": "X ", "skipped": "- "}


def add_parsers(subparsers: Any) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor", help="check packages, device, memory, models, cache and history"
    )
    parser.add_argument(
        "--deep", action="store_true", help="also read every stored byte and load the model"
    )
    parser.add_argument(
        "--drag",
        action="store_true",
        help="let the model prove itself: load, round trip, prompt, inversion, one drag; with a report",
    )
    parser.add_argument("--model", metavar="NAME|PATH", help="with --drag [default: the settings']")
    parser.add_argument("--device", metavar="D", help="with --drag: auto, cpu, cuda, mps")
    parser.add_argument("--dtype", choices=("auto", "fp32", "fp16", "bf16"), help="with --drag")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="with --drag: HTML report [default: NAME-report.html]",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings and the sum of them; 1 when there is a problem."""
    if args.drag:
        return _prove(args)
    if args.model or args.out:
        raise BadInput("--model and --out belong to --drag.", code="arguments", field="--model")
    from workbench.cli.engine import opened_app

    found = []
    with opened_app() as app:
        for finding in doctor.examine(app, deep=args.deep):
            found.append(finding)
            if not args.json:
                print(f"{_MARKS[finding.state]}  {finding.what:<26} {finding.text}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=1))
    else:
        print(f"\n{doctor.verdict(found)}")
        if not args.deep:
            print(
                "'python -m workbench doctor --deep' also reads every stored byte and loads the model."
            )
    return 1 if any(f.state == "problem" for f in found) else 0


def _prove(args: argparse.Namespace) -> int:
    """Print each step as it ends, and write the report."""
    from workbench.cli.engine import opened_app, steps
    from workbench.cli.requests import write_file

    found = []
    with opened_app(args) as app:
        model = args.model or app.settings.model
        out = args.out or Path.cwd() / f"{Path(model).stem}-report.html"
        with steps(quiet=args.json) as (on_step, _):
            for step in prove(app, model, on_step):
                found.append(step)
                if not args.json:
                    print(f"{_MARKS[step.state]}  {step.name:<12} {step.text} [{step.seconds:.1f} s, "
                          f"{step.memory:.1f} GB]", flush=True)  # fmt: skip
        write_file(out, page(model, found, f"{platform.system()} {platform.machine()}").encode())
    failed = [s.name for s in found if s.state == "problem"]
    doubtful = [s.name for s in found if s.state == "warning"]
    if args.json:
        data = {"model": model, "report": str(out), "steps": [s.to_json() for s in found]}
        print(json.dumps(data, indent=1))
    else:
        end = "Everything holds"
        if failed or doubtful:
            end = f"Falls short: {', '.join(failed or doubtful)}; look at the report's pictures"
        print(f"\n{end}. Report: {out}")
    return 1 if failed else 0


EXAMPLE = Path(__file__).resolve().parents[1] / "ui" / "examples"
_NAME = "sailboat-705.png"  # one arrow, 26 px: what every model that draws should manage
_PHOTOGRAPH = "otter.webp"
ROUND_TRIP_DB = 22.0  # an autoencoder of Stable Diffusion gives 25 to 35 dB
RECONSTRUCTION_DB = 18.0  # inversion and back, with the picture's LoRA
PROMPT_EFFECT = 1e-3  # relative change of the prediction between two prompts


@dataclass(slots=True)
class Step:
    """One step: whether it holds, what was measured, and its pictures by name."""

    name: str
    state: str = "ok"  # ok, warning, problem, skipped
    text: str = ""
    seconds: float = 0.0
    memory: float = 0.0  # GB at most, of this process or the GPU
    pictures: dict[str, U8] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data without the pictures."""
        return {"name": self.name, "state": self.state, "text": self.text,
                "seconds": round(self.seconds, 2), "memory_gb": round(self.memory, 2)}  # fmt: skip


def prove(app: App, model: str, on_step: OnStep = ignore_steps) -> Iterator[Step]:
    """Yield the steps one by one. The picture that is dragged is a bundled example with its own arrow."""
    request, rgb = _example(app, model)
    facts: dict[str, Any] = {}
    trials: tuple[tuple[str, Callable[[Step], None]], ...] = (
        ("files", lambda step: _files(app, model, step)),
        ("load", lambda step: _load(app, model, on_step, step, facts)),
        ("round trip", lambda step: _round_trip(rgb, step, facts)),
        ("prompt", lambda step: _prompt(request.prompt, step, facts)),
        ("inversion", lambda step: _inversion(app, request, on_step, step)),
        ("drag", lambda step: _drag(app, request, on_step, step, facts)),
    )
    for name, trial in trials:
        step = Step(name)
        if name not in ("files", "load") and "runtime" not in facts:
            step.state, step.text = "skipped", "The model is not loaded."
            yield step
            continue
        start = time.perf_counter()
        try:
            trial(step)
        except (WorkbenchError, RuntimeError, MemoryError) as exc:
            step.state = "problem"
            step.text = " ".join(str(exc).split())[:400] or type(exc).__name__
        step.seconds = time.perf_counter() - start
        step.memory = _memory(facts)
        yield step


def _example(app: App, model: str) -> tuple[EditRequest, U8]:
    rgb = decode.decode((EXAMPLE / _NAME).read_bytes(), _NAME).rgb
    listing = json.loads((EXAMPLE / "examples.json").read_text(encoding="utf-8"))
    entry = next(e for e in listing if e["file"] == _NAME)
    drawing = Drawing.from_json(entry["drawing"])
    image = app.store.put_image(rgb, _NAME)
    mask = rasterise(drawing, image.width, image.height)
    request = EditRequest(
        image=image,
        mask=app.store.put_mask(mask) if mask.any() else None,
        pairs=drawing.pairs,
        prompt=entry["prompt"],
        model=ModelRef(name=model),
        drag=DragConfig.preset("dragdiffusion"),
    )
    return request, rgb


def _files(app: App, model: str, step: Step) -> None:
    ref = app.model_ref(model)
    step.text = f"{ref.name}, fingerprint {ref.fingerprint[:16]}"


def _load(app: App, model: str, on_step: OnStep, step: Step, facts: dict[str, Any]) -> None:
    runtime = facts["runtime"] = app.runtime(model, on_step=on_step)
    config = runtime.scheduler_config
    kind = "Stable Diffusion XL" if len(runtime._encoders) > 1 else "Stable Diffusion 1.x or 2.x"
    step.text = (
        f"{kind}, {runtime.dtype_name} on {runtime.device}, native {runtime.native_size} px, predicts "
        f"{config.get('prediction_type', 'epsilon')}"
        + (", zero terminal SNR" if config.get("rescale_betas_zero_snr") else "")
    )


def _round_trip(rgb: U8, step: Step, facts: dict[str, Any]) -> None:
    photograph = decode.decode((EXAMPLE / _PHOTOGRAPH).read_bytes(), _PHOTOGRAPH).rgb
    found = {}
    # the drawing last: it is what the later steps go on with
    for name, source in (("photograph", photograph), ("drawing", rgb)):
        facts["rgb"], got, facts["latent"] = _through(source, facts["runtime"])
        found[name] = psnr(got, facts["rgb"])
        step.pictures |= {f"The {name}": facts["rgb"], f"The {name} through the autoencoder": got}
    said = ", ".join(f"{db:.1f} dB on a {name}" for name, db in found.items())
    step.text = f"{said} through the autoencoder; {ROUND_TRIP_DB:g} and more is expected"
    short = [name for name, db in found.items() if not db >= ROUND_TRIP_DB]
    step.state = {0: "ok", 1: "warning"}.get(len(short), "problem")


def _through(rgb: U8, run: Runtime) -> tuple[U8, U8, torch.Tensor]:
    """A picture at the model's size, what its autoencoder makes of it, and the latent between."""
    import torch

    given = decode.resize(rgb, decode.working_size(rgb.shape[1], rgb.shape[0], run.native_size))
    with torch.no_grad():
        pixels = torch.from_numpy(given).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent, _spread = run.encode(pixels)
        back = run.decode(latent)[0].permute(1, 2, 0).cpu().numpy()
    return given, (np.clip(back, 0, 1) * 255 + 0.5).astype(np.uint8), latent


def _prompt(prompt: str, step: Step, facts: dict[str, Any]) -> None:
    import torch

    run = facts["runtime"]
    size = facts["rgb"].shape[1::-1] if "rgb" in facts else (run.native_size,) * 2
    latent = facts.get("latent")
    if latent is None:
        latent = torch.zeros(1, 4, size[1] // run.factor, size[0] // run.factor)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    noisy = (latent.cpu() * 0.7 + noise * 0.7).to(run.device, run.unet.dtype)
    out = []
    with torch.no_grad():
        for text in (prompt, ""):
            found = run.text(text)
            given = {"encoder_hidden_states": found.embedding.to(run.unet.dtype)}
            added = run.added(found, (int(size[0]), int(size[1])))
            if added:
                given["added_cond_kwargs"] = {k: v.to(run.unet.dtype) for k, v in added.items()}
            out.append(run.unet(noisy, 500, return_dict=False, **given)[0].float())
    change = float((out[0] - out[1]).norm() / out[1].norm())
    step.text = (
        f"the prompt changes the prediction by {change:.2%}; expected {PROMPT_EFFECT:.1%} or more"
    )
    step.state = "ok" if np.isfinite(change) and change > PROMPT_EFFECT else "problem"


def _inversion(app: App, request: EditRequest, on_step: OnStep, step: Step) -> None:
    from workbench.jobs.run_job import train

    made = train(
        app, TrainTask(request=request, preview=True), on_step=on_step, owner="", device=""
    )
    db = made["psnr"] or 0.0
    step.text = (
        f"{db:.1f} dB after LoRA training, inversion and denoising back; {RECONSTRUCTION_DB:g} and more is "
        f"expected ({_spent(made['seconds'])})"
    )
    step.state = "ok" if db >= RECONSTRUCTION_DB else "problem"
    if made["reconstruction"]:
        step.pictures = {"Inverted and denoised again": app.store.image(made["reconstruction"])}


def _drag(
    app: App, request: EditRequest, on_step: OnStep, step: Step, facts: dict[str, Any]
) -> None:
    from workbench.jobs.run_job import edit

    record = edit(app, request, on_step=on_step)
    assert record.result is not None
    size, native = max(request.image.width, request.image.height), facts["runtime"].native_size
    per_cell = 2 * max(1.0, size / native)  # image px of a cell of the feature grid
    ends = convergence(record.request.pairs, record.result, record.request.drag, per_cell)
    told = ", ".join(f"{max(0.0, e.left):.1f} of {e.length:.1f} px" for e in ends)
    after = verdict(record).rpartition(", ")[2]  # how many steps
    step.text = f"still to go: {told}, {after} ({_spent(record.result.seconds)})"
    some = sum(e.left for e in ends) < 0.7 * sum(e.length for e in ends)
    step.state = "ok" if all(e.arrived for e in ends) else "warning" if some else "problem"
    step.pictures = {"Dragged": app.store.image(record.result.image)}
    if record.result.strip is not None:
        step.pictures["Arrows, mask and result"] = decode.decode(
            app.store.blob(record.result.strip)
        ).rgb


def psnr(a: U8, b: U8) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, 99 for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 99.0 if error == 0 else min(99.0, 10 * float(np.log10(255**2 / error)))


def _spent(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items() if v >= 0.05)


def _memory(facts: dict[str, Any]) -> float:
    """Most memory so far, GB: of the GPU where the model is there, else of this process."""
    run = facts.get("runtime")
    if run is not None and run.device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(run.device) / 1e9)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Model report: {{ model }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 72rem; }
section { border-top: 1px solid #8884; padding: .8rem 0; }
.problem { color: #c62828; } .warning { color: #b45309; } .ok { color: #2e7d32; } .skipped { color: #777; }
figure { display: inline-block; margin: .6rem 1rem 0 0; } img { max-width: 22rem; display: block; }
figcaption, .meta { color: #777; font-size: .87rem; }
</style></head><body>
<h1>{{ model }}</h1>
<p class="meta">drag workbench {{ version }}; {{ machine }}</p>
{% for step in steps %}<section>
<h2><span class="{{ step.state }}">{{ step.state }}</span> {{ step.name }}</h2>
<p>{{ step.text }}</p>
<p class="meta">{{ "%.1f" % step.seconds }} s, {{ "%.1f" % step.memory }} GB at most so far</p>
{% for name, data in pictures[loop.index0] %}<figure><img src="{{ data }}" alt="{{ name }}">
<figcaption>{{ name }}</figcaption></figure>{% endfor %}
</section>{% endfor %}
</body></html>
"""


def page(model: str, steps: list[Step], machine: str) -> str:
    """The report as one HTML file."""
    pictures = [
        [(name, f"data:image/png;base64,{base64.b64encode(decode.encode_png(rgb)).decode()}")
         for name, rgb in step.pictures.items()]
        for step in steps
    ]  # fmt: skip
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        model=model, steps=steps, pictures=pictures, version=__version__, machine=machine
    )
