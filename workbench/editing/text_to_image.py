"""Generate pictures from a prompt, and keep every latent so that a drag can start from them.

DDIM or DPM-Solver++ (2M, optionally with Karras' noise levels), classifier-free guidance, FreeU by
diffusers' own switch. A drag of such a picture needs no inversion: the sampler's own latents are
the exact path (docs/algorithm.md 1.6).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save

from workbench.core import keys
from workbench.core.config import GenerationConfig
from workbench.core.errors import BadInput, ModelError
from workbench.core.record import OnStep, StepInfo, ignore_steps
from workbench.core.request import GenerateTask
from workbench.diffusion.ddim import CLEAN, Schedule, schedule_from
from workbench.diffusion.unet import Denoiser
from workbench.imaging import decode

if TYPE_CHECKING:
    from workbench.diffusion.model import Runtime
    from workbench.storage.cache import Cache
    from workbench.storage.history import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Path:
    """A sampler's way: at each visited timestep the latent and the noise predicted there.

    `timesteps` int64 [S] falling; `latents` and `noises` float32 [S,4,h,w]; `final` [1,4,h,w].
    """

    timesteps: torch.Tensor
    latents: torch.Tensor
    noises: torch.Tensor
    final: torch.Tensor

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        parts = {f.name: getattr(self, f.name).contiguous() for f in dataclasses.fields(self)}
        return bytes(save(parts))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Path:
        """Read what `to_bytes` wrote."""
        return cls(**load(raw))

    def at(self, schedule: Schedule, t: int) -> torch.Tensor:
        """The latent [1,4,h,w] at the noise level of timestep t.

        Visited timesteps give the latent itself. In between, one deterministic DDIM step from the
        last visited level above leads there exactly along that step of the path.
        """
        above = [i for i, s in enumerate(self.timesteps.tolist()) if s >= t]
        i = above[-1] if above else 0
        z, eps, s = self.latents[i : i + 1], self.noises[i : i + 1], int(self.timesteps[i])
        return z if s == t else schedule.noised(schedule.clean(z, eps, s), eps, t)


def size_of(config: GenerationConfig, native: int) -> tuple[int, int]:
    """(width, height) in px; 0 means the model's native size."""
    return config.width or native, config.height or native


@contextlib.contextmanager
def freeu(runtime: Runtime, config: GenerationConfig | None) -> Iterator[None]:
    """FreeU as a generation asks for it, switched off again afterwards."""
    factors = config.freeu if config is not None else None
    if factors is None:
        yield
        return
    runtime.unet.enable_freeu(*factors)
    try:
        yield
    finally:
        runtime.unet.disable_freeu()
        for block in runtime.unet.up_blocks:  # diffusers leaves the attributes behind, set to None
            for name in ("s1", "s2", "b1", "b2"):
                if name in vars(block):
                    delattr(block, name)


def denoiser_of(
    runtime: Runtime,
    prompt: str,
    size: tuple[int, int],
    schedule: Schedule,
    *,
    guidance: float = 1.0,
    negative: str = "",
    block: int = 3,
    graphs: bool = True,
) -> Denoiser:
    """The model under a prompt (and a negative one where guidance is above 1)."""
    return Denoiser(
        runtime.unet,
        schedule,
        runtime.prompt(prompt, size),
        negative=runtime.prompt(negative, size) if guidance > 1 else None,
        guidance=guidance,
        block=block,
        graphs=runtime.graphs if graphs else None,
    )


@torch.no_grad()
def sample_path(
    runtime: Runtime,
    prompt: str,
    config: GenerationConfig,
    on_step: OnStep = ignore_steps,
) -> Path:
    """Run the sampler from seeded noise (drawn on the CPU: a seed means the same everywhere).

    Raises:
        ModelError: when the model gives NaN.
        Cancelled: from `on_step`.
    """
    width, height = size_of(config, runtime.native_size)
    schedule = schedule_from(runtime.scheduler_config, config.steps)
    denoiser = denoiser_of(
        runtime, prompt, (width, height), schedule,
        guidance=config.guidance, negative=config.negative_prompt,
        graphs=config.freeu is None,  # whose Fourier transforms cannot be recorded
    )  # fmt: skip
    generator = torch.Generator().manual_seed(config.seed)
    channels = runtime.unet.config.in_channels
    shape = (1, channels, height // runtime.factor, width // runtime.factor)
    z = torch.randn(shape, generator=generator).to(runtime.device)
    timesteps, advance = _sampler(runtime, schedule, config)
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    with freeu(runtime, config):
        for i, t in enumerate(timesteps):
            on_step(StepInfo(stage="generate", step=i, total=len(timesteps)))
            eps = denoiser.eps(z, t)
            seen.append((t, z.cpu(), eps.cpu()))
            z = advance(z, eps, i)
    on_step(StepInfo(stage="generate", step=len(timesteps), total=len(timesteps)))
    if not torch.isfinite(z).all():
        raise ModelError(
            f"The model gave NaN while generating (precision {runtime.dtype_name}); try fp32 or "
            "less guidance.",
            code="not-finite",
        )
    return Path(
        timesteps=torch.tensor([t for t, _, _ in seen]),
        latents=torch.cat([z for _, z, _ in seen]),
        noises=torch.cat([e for _, _, e in seen]),
        final=z.cpu(),
    )


def _sampler(
    runtime: Runtime, schedule: Schedule, config: GenerationConfig
) -> tuple[list[int], Any]:
    """Timesteps, and the function (latent, noise, index) -> next latent."""
    if config.scheduler == "ddim":
        steps = list(schedule.timesteps)

        def ddim(z: torch.Tensor, eps: torch.Tensor, i: int) -> torch.Tensor:
            to = steps[i + 1] if i + 1 < len(steps) else CLEAN
            return schedule.step(z, eps, steps[i], to)

        return steps, ddim

    from diffusers import DPMSolverMultistepScheduler

    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
             "timestep_spacing", "steps_offset", "rescale_betas_zero_snr")  # fmt: skip
    given = {k: runtime.scheduler_config[k] for k in known if k in runtime.scheduler_config}
    solver = DPMSolverMultistepScheduler(
        **given,
        prediction_type="epsilon",  # the denoiser has turned v into noise already
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_karras_sigmas=config.scheduler.endswith("karras"),
    )
    solver.set_timesteps(config.steps)

    def multistep(z: torch.Tensor, eps: torch.Tensor, i: int) -> torch.Tensor:
        out: torch.Tensor = solver.step(eps, solver.timesteps[i], z).prev_sample
        return out

    return [int(t) for t in solver.timesteps], multistep


def cached_path(
    runtime: Runtime,
    cache: Cache,
    prompt: str,
    config: GenerationConfig,
    model: str,
    on_step: OnStep = ignore_steps,
) -> tuple[Path, bool]:
    """The sampler's way from the cache, or run it; and whether it was cached.

    `model` is the fingerprint (with a style's, if one is stacked).
    """

    def make() -> bytes:
        return sample_path(runtime, prompt, config, on_step).to_bytes()

    name = keys.generation_key(model, prompt, _explicit(config, runtime.native_size))
    raw, hit = cache.get_or_make(name, make, kind="generation", label=prompt[:60])
    return Path.from_bytes(raw), hit


def _explicit(config: GenerationConfig, native: int) -> GenerationConfig:
    """The same with width and height spelled out, so that one picture has one key."""
    width, height = size_of(config, native)
    return dataclasses.replace(config, width=width, height=height)


def generate(
    task: GenerateTask,
    *,
    runtime: Runtime,
    cache: Cache,
    store: Store,
    on_step: OnStep = ignore_steps,
) -> dict[str, Any]:
    """Make the pictures of a task and put them into the history's pictures.

    Returns `{"pictures": [{"image", "width", "height", "config"}], "prompt", "model"}`; `config`
    (with its own seed) is what an edit of that picture takes as `generation`.

    Raises:
        BadInput: for a size that the model cannot make.
        ModelError, Cancelled: as `sample_path`.
    """
    width, height = size_of(task.config, runtime.native_size)
    if width * height > 16 * runtime.native_size**2:
        raise BadInput(
            f"{width}x{height} px is far beyond the model's {runtime.native_size} px; choose less.",
            code="too-large",
        )
    made = []
    with runtime.job():
        for i in range(task.count):
            config = dataclasses.replace(task.config, seed=(task.config.seed + i) % 2**63)
            config = _explicit(config, runtime.native_size)
            steps = _counting(on_step, i, task)
            path, _ = cached_path(runtime, cache, task.prompt, config, runtime.fingerprint, steps)
            rgb = to_rgb(runtime.decode(path.final))
            asset = store.put_image(rgb, f"seed {config.seed}")
            made.append({"image": asset.id, "width": width, "height": height,
                         "config": dataclasses.asdict(config)})  # fmt: skip
            steps(StepInfo(stage="generate", step=1, total=1, preview=decode.encode_jpeg(rgb)))
    return {
        "pictures": made,
        "prompt": task.prompt,
        "model": dataclasses.asdict(runtime.ref),
        "notice": runtime.text(task.prompt).notice,
    }


def _counting(on_step: OnStep, index: int, task: GenerateTask) -> OnStep:
    """Steps of one picture as steps of the whole task."""
    each = task.config.steps

    def report(info: StepInfo) -> None:
        step = each * index + each * info.step // max(1, info.total)
        total = each * task.count
        on_step(dataclasses.replace(info, step=step, total=total, part=index + 1, parts=task.count))

    return report


def to_rgb(pixels: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels [1,3,H,W] in [0,1] to uint8 [H,W,3]; truncated, as the reference does."""
    return (pixels[0].permute(1, 2, 0) * 255).to(torch.uint8).cpu().numpy()
