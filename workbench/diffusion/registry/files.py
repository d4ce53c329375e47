"""The files of a model on this disk: which there are, which are missing, and their fingerprint.

Nothing here opens a pickle or imports torch: a safetensors file is known by its JSON header.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import ModelError, StoreError
from workbench.core.keys import key
from workbench.diffusion.registry import PICKLES, WEIGHTS, ModelSpec, Registry, refuse_pickle
from workbench.diffusion.registry.diagnose import Look, diagnose
from workbench.storage.files import write_atomic

log = logging.getLogger(__name__)

STANDARD = WEIGHTS.parent / "standard"  # configurations that ship with the workbench

_STEM = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json",
                    "tokenizer_config.json", "added_tokens.json")  # fmt: skip
_NO_MODEL_DATA = ("_", "transformers_version", "torch_dtype", "dtype")  # config keys left out


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that is all there.

    `root` is a diffusers folder: configuration, tokenizers, and the weights unless `single` (one
    checkpoint file) has them. `weights` maps a component to its files, `variants` to the variant
    part of their names ("" or e.g. "fp16"). `vae` is the folder of the autoencoder.
    """

    spec: ModelSpec
    root: Path
    vae: Path
    single: Path | None
    weights: Mapping[str, tuple[Path, ...]]
    variants: Mapping[str, str]
    zero_snr: bool = False  # the file says that its noise schedule ends without any signal
    notices: tuple[str, ...] = ()  # what the file says that is not applied

    @property
    def is_sdxl(self) -> bool:
        """Two text encoders and added time ids."""
        return "text_encoder_2" in self.components

    @property
    def components(self) -> tuple[str, ...]:
        """The parts with weights: unet, vae and one or two text encoders."""
        return tuple(self.weights)

    @property
    def bytes(self) -> int:
        """Size of all weight files (a single file counts once)."""
        return sum(p.stat().st_size for p in {p for files in self.weights.values() for p in files})

    def config(self, component: str) -> dict[str, Any]:
        """The parsed configuration of a component, or of `scheduler`."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        folder = self.vae if component == "vae" else self.root / component
        found = _json(folder / name, self.spec)
        if component == "scheduler" and self.spec.prediction:
            found["prediction_type"] = self.spec.prediction
        if component == "scheduler" and self.zero_snr:
            found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return found

    def from_checkpoint(self, part: str) -> bool:
        """True if a part comes from a file in the original (CompVis, Stability) layout."""
        return self.weights[part][0] in (self.single, _vae_file(self.spec))


def find_files(spec: ModelSpec, registry: Registry | None = None) -> ModelFiles:
    """Find the files of a model without touching the network.

    Raises:
        ModelError: naming what is missing, damaged or of a wrong kind, and how to get it.
    """
    registry = registry or Registry()
    if spec.is_file:
        return _single_file(spec, registry)
    root = hub_folder(spec) if spec.hub else Path(spec.path)
    if root.is_file():
        if root.suffix.lower() in PICKLES:
            raise ModelError(refuse_pickle(root), code="pickle")
        raise ModelError(
            f"{root.name} is neither a diffusers folder nor a .safetensors file; give one of these."
        )
    if not root.is_dir():
        raise ModelError(_missing(spec), code="not-here", model=spec.name)
    parts = _check_configs(spec, root)
    vae = _vae_folder(spec, root)
    weights: dict[str, tuple[Path, ...]] = {}
    variants: dict[str, str] = {}
    for part in parts:
        folder = vae if part == "vae" else root / part
        own = _vae_file(spec) if part == "vae" else None
        variants[part], weights[part] = ("", (own,)) if own else _weights(spec, folder, part)
        for path in weights[part]:
            inspect(path)  # a pointer, a web page or half a download is called that
    return ModelFiles(
        spec=spec, root=root, vae=vae, single=None, weights=weights, variants=variants
    )


def hub_folder(spec: ModelSpec) -> Path:
    """The folder of a downloaded hub model in Hugging Face's own cache; no network.

    Raises:
        ModelError: when it was never downloaded; the text is the command that does it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(spec.hub, revision=spec.revision or None, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as exc:
        log.debug("no local snapshot of %s: %s", spec.hub, exc)
        raise ModelError(_missing(spec), code="not-here", model=spec.name) from exc


def _missing(spec: ModelSpec) -> str:
    if spec.hub:
        return (
            f"The model {spec.name!r} ({spec.hub}) is not on this machine; fetch it with "
            f"'python -m workbench models download {spec.name}', or give the path of a diffusers "
            "folder or .safetensors file that you have."
        )
    if spec.builtin:
        return (
            f"The model {spec.name!r} should ship with the workbench but its folder "
            f"workbench/weights/{Path(spec.path).name} is missing; check it out again, or train "
            "one with 'python -m workbench demo train'."
        )
    return f"The model {spec.name!r} points to {spec.path}, which does not exist; correct the path."


def _check_configs(spec: ModelSpec, root: Path) -> list[str]:
    """The components with weights, after a look at all configurations."""
    index = root / "model_index.json"
    kind = str(_json(index, spec).get("_class_name", "")) if index.is_file() else ""
    if kind and not (kind.startswith("StableDiffusion") or kind == "LatentDiffusion"):
        raise ModelError(
            f"The model {spec.name!r} is a {kind}; the workbench runs Stable Diffusion 1.x, 2.x "
            "and XL models.",
            code="other-architecture",
        )
    two = (root / "text_encoder_2").is_dir() or "XL" in kind
    if two and not (root / "text_encoder").is_dir():
        raise ModelError(
            f"The model {spec.name!r} is an XL refiner or lacks its first text encoder; use the "
            "base model.",
            code="no-text-encoder",
        )
    parts = ["unet", "vae", "text_encoder", *(["text_encoder_2"] if two else [])]
    wanted = [f"{p}/config.json" for p in parts if not (p == "vae" and spec.vae)]
    wanted += ["scheduler/scheduler_config.json"]
    for name in wanted:
        if not (root / name).is_file():
            raise ModelError(
                f"The model {spec.name!r} lacks {name}; it is not a complete diffusers folder.",
                code="missing-file",
            )
    for name in ("tokenizer", *(["tokenizer_2"] if two else [])) * (STANDARD not in root.parents):
        folder = root / name
        if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"The model {spec.name!r} lacks the vocabulary in {name}/.", code="missing-file"
            )
    unet = _json(root / "unet" / "config.json", spec)
    if unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise ModelError(
            f"The model {spec.name!r} has a {unet['_class_name']}; the workbench needs a "
            "UNet2DConditionModel.",
            code="other-architecture",
        )
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        raise ModelError(
            f"The model {spec.name!r} takes {unet['in_channels']} channels (an inpainting, depth or "
            "edit model); choose a plain text-to-image model.",
            code="channels",
        )
    return parts


def _vae_folder(spec: ModelSpec, root: Path) -> Path:
    if not spec.vae or _vae_file(spec):
        return root / "vae"
    folder = Path(spec.vae).expanduser()
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"The model {spec.name!r} names the autoencoder {spec.vae!r}, where there is no "
            "config.json; give the folder of an AutoencoderKL in diffusers format, or one .safetensors "
            "file.",
            code="no-vae",
        )
    return folder


def _vae_file(spec: ModelSpec) -> Path | None:
    """Another autoencoder that is one file in the original layout."""
    path = Path(spec.vae).expanduser()
    return path if path.suffix.lower() == ".safetensors" and path.is_file() else None


def _weights(spec: ModelSpec, folder: Path, part: str) -> tuple[str, tuple[Path, ...]]:
    """The safetensors files of a component: whole, sharded, or of a variant such as fp16."""
    stem = _STEM[part]
    plain = folder / f"{stem}.safetensors"
    if plain.is_file():
        return "", (plain,)
    for index in sorted(folder.glob(f"{stem}*.index*.json"), key=lambda p: len(p.name)):
        variant = index.name.removeprefix(stem).removesuffix(".json").replace(".safetensors", "")
        table = _json(index, spec).get("weight_map")
        names = sorted({str(n) for n in table.values()}) if isinstance(table, dict) else []
        shards = tuple(folder / n for n in names if "/" not in n and "\\" not in n)
        if shards and all(p.is_file() and p.suffix == ".safetensors" for p in shards):
            return variant.replace(".index", "").strip("."), shards
        if ".bin." not in index.name:
            lost = next((p.name for p in shards if not p.is_file()), "its list of shards")
            raise ModelError(
                f"The model {spec.name!r} lacks {lost} of its {part}; fetch the missing file.",
                code="missing-file",
            )
    for path in sorted(folder.glob(f"{stem}.*.safetensors")):
        variant = path.name.removeprefix(f"{stem}.").removesuffix(".safetensors")
        if "-of-" not in variant:
            return variant, (path,)
    pickles = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in PICKLES]
    if pickles:
        raise ModelError(refuse_pickle(pickles[0]), code="pickle")
    raise ModelError(
        f"The model {spec.name!r} lacks {part}/{stem}.safetensors; fetch the missing file.",
        code="missing-file",
    )


def _single_file(spec: ModelSpec, registry: Registry) -> ModelFiles:
    path = Path(spec.path)
    if not path.is_file():
        raise ModelError(_missing(spec), code="no-file")
    look = inspect(path)
    if look.code != "checkpoint":
        raise ModelError(f"{path.name} {look.text}.", code=look.code)
    if not look.has_vae and not spec.vae:
        raise ModelError(
            f"{path.name} holds no VAE (autoencoder); name one: 'models add NAME {path.name} --vae "
            "FOLDER-OR-FILE'.",
            code="no-vae",
        )
    spec = dataclasses.replace(spec, prediction=spec.prediction or look.prediction)
    second = {"v_prediction": "sd21", "epsilon": "sd21-base", "": ""}[spec.prediction]
    lender = spec.config or {"sd1": "sd15", "sdxl": "sdxl", "sd2": second}[look.family]
    if not lender:
        raise ModelError(
            f"{path.name} is a Stable Diffusion 2.x checkpoint, which does not say how it predicts; "
            "add it with 'python -m workbench models add NAME FILE --config sd21' (768, "
            "v-prediction) or '--config sd21-base' (512, epsilon).",
            code="prediction-unknown",
        )
    root = _lent(spec, registry, lender)
    parts = _check_configs(dataclasses.replace(registry.resolve(lender), vae=spec.vae), root)
    own: dict[str, tuple[Path, ...]] = dict.fromkeys(parts, (path,))
    variants = dict.fromkeys(parts, "")
    vae, file = _vae_folder(spec, root), _vae_file(spec)
    if file is not None:
        own["vae"] = (file,)
    elif spec.vae:
        variants["vae"], own["vae"] = _weights(spec, vae, "vae")
    return ModelFiles(
        spec=spec, root=root, vae=vae, single=path, weights=own, variants=variants,
        zero_snr=look.zero_snr, notices=look.notices,
    )  # fmt: skip


def _lent(spec: ModelSpec, registry: Registry, lender: str) -> Path:
    """The folder that lends a single file its configuration: on this disk, else what ships here."""
    standard = STANDARD / lender
    try:
        source = registry.resolve(lender)
        return hub_folder(source) if source.hub else Path(source.path)
    except ModelError as exc:
        if standard.is_dir() and "/" not in lender:
            return standard
        raise ModelError(
            f"{Path(spec.path).name} needs the configuration and tokenizer of {lender!r}, which are "
            "not on this machine; name a registered model or a diffusers folder that has them.",
            code="no-config",
        ) from exc


def inspect(path: Path) -> Look:
    """Identify a file (`diagnose`).

    Raises:
        ModelError: when it is not a complete safetensors file; the text says what it is instead.
    """
    try:
        look = diagnose(path)
    except OSError as exc:
        raise ModelError(
            f"{path.name} cannot be read ({exc.strerror}).", code="unreadable"
        ) from exc
    if not look.readable:
        raise ModelError(f"{path.name} {look.text}.", code=look.code)
    return look


def read_header(path: Path) -> Mapping[str, Any]:
    """Tensor names of a safetensors file with dtype, shape and place; also '__metadata__'.

    Raises:
        ModelError: as `inspect`.
    """
    return inspect(path).header


def fingerprint(
    files: ModelFiles,
    memory: Path | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> str:
    """Name of what a model computes: hash of weights, configurations, vocabulary and schedule.

    SHA-256 of a weight file is remembered in `memory` (JSON) by path, size and time of change, so
    that gigabytes are read once. `on_file(done, total)` is called after each file.
    """
    with _remembered(memory) as known:
        sums: dict[str, Any] = {}
        jobs = [(part, p) for part, paths in files.weights.items() for p in paths]
        for i, (part, path) in enumerate(jobs, 1):
            name = "single" if path == files.single else f"{part}/{path.name}"
            sums[name] = _sha256(path, known)
            if on_file is not None:
                on_file(i, len(jobs))
    for part in (*files.components, "scheduler"):
        config = files.config(part)
        sums[f"{part}/config"] = {
            k: v for k, v in config.items() if not k.startswith(_NO_MODEL_DATA)
        }
    for folder in ("tokenizer", "tokenizer_2"):
        for name in _TOKENIZER_FILES[:3]:
            path = files.root / folder / name
            if path.is_file():
                sums[f"{folder}/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    more = ("zero-snr",) if files.zero_snr else ()
    return key("model", sums, files.spec.prediction, *more)


def native_size(files: ModelFiles) -> int:
    """Longest side for which a model was trained, px: as the spec says, else from the U-Net."""
    if files.spec.native_size:
        return files.spec.native_size
    side = files.config("unet").get("sample_size") or 64
    side = max(side) if isinstance(side, list) else side
    levels = len(files.config("vae").get("block_out_channels", [0] * 4))
    return int(side) * int(2 ** (levels - 1))


@contextlib.contextmanager
def _remembered(memory: Path | None) -> Iterator[dict[str, list[Any]]]:
    """The table of known sums; written back when it grew. A damaged table is an empty one."""
    known: dict[str, list[Any]] = {}
    if memory is not None and memory.is_file():
        try:
            data = json.loads(memory.read_bytes())
            known = {k: v for k, v in data.items() if isinstance(v, list) and len(v) == 3}
        except (OSError, ValueError, AttributeError) as exc:
            log.warning("%s is damaged (%s); sums are computed again", memory.name, exc)
    before = json.dumps(known)
    yield known
    if memory is not None and json.dumps(known) != before:
        try:
            write_atomic(memory, json.dumps(known, indent=1).encode(), temp=memory.parent)
        except StoreError as exc:
            log.warning("%s", exc)


def _sha256(path: Path, known: dict[str, list[Any]]) -> str:
    real = path.resolve()
    stat = real.stat()
    mark = [stat.st_size, stat.st_mtime_ns]
    found = known.get(str(real))
    if found is not None and found[:2] == mark and isinstance(found[2], str):
        return found[2]
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known[str(real)] = [*mark, digest]
    return digest


def _json(path: Path, spec: ModelSpec) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelError(
            f"The model {spec.name!r}: {path.parent.name}/{path.name} cannot be read ({exc})."
        ) from exc
    if not isinstance(data, dict):
        raise ModelError(
            f"The model {spec.name!r}: {path.parent.name}/{path.name} is not a JSON object."
        )
    return data
