"""Files of a model -> checked torch modules, frozen and in evaluation mode.

Only what a drag needs is loaded: tokenizers, text encoders, U-Net, autoencoder, schedule. Safety
checker and feature extractor are never read, no pickle is opened, and nothing here uses the network.
diffusers and transformers report what did not fit; every such report becomes one sentence.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.errors import ModelError, WorkbenchError
from workbench.core.record import OnStep, StepInfo, ignore_steps
from workbench.diffusion.registry.diagnose import OLD_TEXT
from workbench.diffusion.registry.files import STANDARD, ModelFiles

log = logging.getLogger(__name__)

# The libraries' loaders change torch for the whole process while they read (default type, meta
# device): two of them at once, for two devices, take each other's tensors away.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(slots=True, kw_only=True)
class Parts:
    """The modules of one model. `tokenizers` and `text_encoders` have one entry each, XL two."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: list[Any]
    tokenizers: list[Any]
    scheduler_config: dict[str, Any]

    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules by component name."""
        named = {"unet": self.unet, "vae": self.vae}
        for i, encoder in enumerate(self.text_encoders):
            named["text_encoder" + ("_2" if i else "")] = encoder
        return named


def load_parts(
    files: ModelFiles,
    device: torch.device,
    dtype: torch.dtype,
    on_step: OnStep = ignore_steps,
) -> Parts:
    """Read, check and freeze the modules of a model.

    The autoencoder of an XL model stays in float32 where `dtype` is float16: its activations
    overflow (diffusers' `force_upcast`).

    Raises:
        ModelError: naming the component and what is missing, superfluous, mis-shaped or not finite.
    """
    loaded: dict[str, Any] = {}
    total = len(files.components)
    with _ONE_AT_A_TIME, quiet_libraries():
        for i, part in enumerate(files.components):
            on_step(StepInfo(stage="load", step=i, total=total))
            kind = torch.float32 if _keep_float32(files, part, dtype) else dtype
            with _explained(files, part):
                loaded[part] = _load(files, part, kind)
            _check_finite(files, part, loaded[part])
            loaded[part].requires_grad_(False).eval().to(device)
        on_step(StepInfo(stage="load", step=total, total=total))
        _check_fit(files, loaded)
        scheduler = files.config("scheduler")
        _check_schedule(files, scheduler)
        return Parts(
            unet=loaded["unet"],
            vae=loaded["vae"],
            text_encoders=[m for name, m in loaded.items() if name.startswith("text_encoder")],
            tokenizers=_tokenizers(files),
            scheduler_config=scheduler,
        )


def _keep_float32(files: ModelFiles, part: str, dtype: torch.dtype) -> bool:
    return part == "vae" and files.is_sdxl and dtype == torch.float16


def _load(files: ModelFiles, part: str, dtype: torch.dtype) -> Any:
    """One component through its library's own loader, refusing whatever does not fit."""
    kind = _class_of(files, part)
    if files.from_checkpoint(part):
        return _from_single_file(files, part, kind, dtype)
    folder = files.vae if part == "vae" else files.root / part
    options: dict[str, Any] = {
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "variant": files.variants[part] or None,
    }
    options["dtype" if part.startswith("text") else "torch_dtype"] = dtype
    if part.startswith("text"):
        options["ignore_mismatched_sizes"] = True  # then reported by name, and refused below
    module, info = kind.from_pretrained(str(folder), **options)
    _check_keys(files, part, info)
    return module


def _class_of(files: ModelFiles, part: str) -> Any:
    if part == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel
    if part == "vae":
        from diffusers import AutoencoderKL

        name = files.config("vae").get("_class_name", "AutoencoderKL")
        if name != "AutoencoderKL":
            raise ModelError(
                f"The model {files.spec.name!r} has a {name}; the workbench needs an AutoencoderKL.",
                code="other-architecture",
            )
        return AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    names = files.config(part).get("architectures") or ["CLIPTextModel"]
    known = {"CLIPTextModel": CLIPTextModel,
             "CLIPTextModelWithProjection": CLIPTextModelWithProjection}  # fmt: skip
    if names[0] not in known:
        raise ModelError(
            f"The model {files.spec.name!r} has a {names[0]} as {part}; the workbench knows CLIP "
            "text encoders.",
            code="other-architecture",
        )
    return known[names[0]]


def _from_single_file(files: ModelFiles, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """A component out of an original (CompVis, Stability) checkpoint, by diffusers' converters."""
    from diffusers.loaders.single_file import load_single_file_sub_model
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    path = str(files.weights[part][0])
    checkpoint = {
        OLD_TEXT.sub("cond_stage_model.transformer.text_model.", name): tensor
        for name, tensor in load_single_file_checkpoint(path, local_files_only=True).items()
    }
    return load_single_file_sub_model(
        library_name="transformers" if part.startswith("text") else "diffusers",
        class_name=kind.__name__,
        name=part,
        checkpoint=checkpoint,
        pipelines=None,
        is_pipeline_module=False,
        cached_model_config_path=str(files.root),
        local_files_only=True,
        torch_dtype=dtype,
    )


def _check_keys(files: ModelFiles, part: str, info: dict[str, Any]) -> None:
    problems = (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has, but should not,"),
        ("mismatched_keys", "has in another shape than its configuration says"),
    )
    for name, verb in problems:
        found = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(name) or ())
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            raise ModelError(
                f"The {part} of {files.spec.name!r} {verb} {found[0]}{more}; the file does not "
                "belong to this model, or the download is incomplete.",
                code="misfit",
            )
    if info.get("error_msgs"):
        raise ModelError(
            f"The {part} of {files.spec.name!r} cannot be loaded: {info['error_msgs'][0]}"
        )


@contextlib.contextmanager
def _explained(files: ModelFiles, part: str) -> Iterator[None]:
    """Turn what a library raises about files into a sentence; memory and our own errors pass."""
    try:
        yield
    except (WorkbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as exc:
        log.debug("loading %s", part, exc_info=True)
        reason = " ".join(str(exc).split()).partition(". If you want to")[0][:300]
        raise ModelError(
            f"The {part} of {files.spec.name!r} does not fit its configuration ({reason}); check that "
            "the file belongs to this kind of model.",
            code="misfit",
        ) from exc


def _check_finite(files: ModelFiles, part: str, module: torch.nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"The {part} of {files.spec.name!r} lacks {name}.", code="misfit")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"The {part} of {files.spec.name!r} has NaN or infinity in {name}: it overflowed when "
                "it was converted; get another version of it.",
                code="not-finite",
            )


def _check_fit(files: ModelFiles, loaded: dict[str, Any]) -> None:
    """The widths at which the parts meet."""
    unet, vae = loaded["unet"].config, loaded["vae"].config
    if unet.in_channels != vae.latent_channels:
        raise ModelError(
            f"The U-Net of {files.spec.name!r} takes {unet.in_channels} latent channels but its "
            f"autoencoder makes {vae.latent_channels}; choose the autoencoder that belongs to it."
        )
    width = sum(m.config.hidden_size for n, m in loaded.items() if n.startswith("text_encoder"))
    if unet.cross_attention_dim != width:
        raise ModelError(
            f"The U-Net of {files.spec.name!r} expects text of width {unet.cross_attention_dim} but "
            f"its text encoder gives {width}; the parts belong to different models."
        )


def _check_schedule(files: ModelFiles, config: dict[str, Any]) -> None:
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"The model {files.spec.name!r} predicts {kind!r}; the workbench knows epsilon and "
            "v_prediction.",
            code="unknown-prediction",
        )


def _tokenizers(files: ModelFiles) -> list[Any]:
    from transformers import CLIPTokenizer

    made = []
    for name in ("tokenizer", *(["tokenizer_2"] if files.is_sdxl else [])):
        with _explained(files, name):
            if STANDARD in files.root.parents:
                made.append(_standard_tokenizer(files, name))
                continue
            made.append(
                CLIPTokenizer.from_pretrained(str(files.root / name), local_files_only=True)
            )
    return made


def _standard_tokenizer(files: ModelFiles, name: str) -> Any:
    """CLIP's tokenizer, made of the merges that ship here.

    The vocabulary is 256 bytes, the same at a word's end, one token per merge, and two marks. SD 2.x
    and the second encoder of XL (OpenCLIP) fill up with "!", the others with the end mark.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = gzip.decompress((STANDARD / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(m.split(" ")) for m in merges),
             "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    openclip = name == "tokenizer_2" or files.config("text_encoder")["hidden_size"] == 1024
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[tuple(m.split(" ")) for m in merges],
        pad_token="!" if openclip else "<|endoftext|>",
        model_max_length=77,
    )


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no advice from the libraries while they load."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    levels = [lib.get_verbosity() for lib in libraries]
    for lib in libraries:
        lib.set_verbosity_error()
        lib.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for lib, level in zip(libraries, levels, strict=True):
            lib.set_verbosity(level)
