"""LoRA files: train a picture's LoRA, and the library of named ones, kept until a person removes them."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core import keys
from workbench.core.config import LoraRef
from workbench.core.errors import BadInput, ModelError, StoreError
from workbench.core.record import StepInfo
from workbench.diffusion.registry.diagnose import LoraCard
from workbench.imaging import decode
from workbench.storage.files import write_atomic
from workbench.storage.history import Store

if TYPE_CHECKING:
    import torch

    from workbench.editing.prepare import PreparedEdit


log = logging.getLogger(__name__)

_NAME = re.compile(r"[\w][\w .()+-]{0,63}", re.UNICODE)
_MOST_BYTES = 2 * 2**30


PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def label_of(name: str | Path) -> str:
    """Name of a LoRA that is given by its path: a PEFT folder's name, else the file's."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.name == PEFT_WEIGHTS else path.stem


def with_config(raw: bytes, config: bytes) -> bytes:
    """A PEFT file with its adapter_config.json in its header, as diffusers keeps it: then it is whole.

    Raises:
        BadInput: code "metadata", when the config is no JSON object; "not-safetensors" for the file.
    """
    try:
        fields = {f"unet.{k}": v for k, v in json.loads(config).items()}
    except (ValueError, AttributeError, RecursionError) as exc:
        text = f"{PEFT_CONFIG} is not JSON, so the LoRA's strength is not known; fetch it again."
        raise BadInput(text, code="metadata") from exc
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        said = header.setdefault("__metadata__", {})
        said["lora_adapter_metadata"] = json.dumps(fields)
    except (ValueError, AttributeError, TypeError, struct.error, RecursionError) as exc:
        text = f"{PEFT_WEIGHTS} has no safetensors header that can be read; fetch it again."
        raise BadInput(text, code="not-safetensors") from exc
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # safetensors wants the numbers aligned
    return struct.pack("<Q", len(head)) + head + raw[8 + length :]


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """One file of the library."""

    name: str
    path: Path
    bytes: int
    changed: float  # seconds since 1970


class LoraLibrary:
    """LoRA files by name. A request names the file by content, so a later change does not count."""

    def __init__(self, folder: Path, store: Store) -> None:
        """Keep files in `folder`; what an edit uses is also kept in the history's blobs."""
        self.folder = folder
        self._store = store

    def entries(self) -> list[LoraEntry]:
        """All files, by name."""
        found = []
        for path in sorted(self.folder.glob("*.safetensors")):
            stat = path.stat()
            found.append(LoraEntry(path.stem, path, stat.st_size, stat.st_mtime))
        return found

    def path(self, name: str) -> Path:
        """Path of a name's file.

        Raises:
            BadInput: when the name could not be a file's.
        """
        if not _NAME.fullmatch(name) or name.endswith("."):
            raise BadInput(
                f"{name[:80]!r} cannot be a LoRA's name; use letters, digits, spaces and . ( ) + - _ .",
                code="bad-name",
                field="name",
            )
        return self.folder / f"{name}.safetensors"

    def get(self, name: str) -> bytes:
        """The bytes of a library entry, or of a file or PEFT folder that is given by its path.

        Raises:
            BadInput: when there is neither.
        """
        own = self.folder / f"{name}.safetensors"
        path = own if _NAME.fullmatch(name) and own.is_file() else Path(name).expanduser()
        if path.is_dir():
            path /= PEFT_WEIGHTS
        if path.suffix.lower() != ".safetensors" or not path.is_file():
            if path.is_file():
                raise BadInput(
                    f"{path.name} is not a .safetensors file, and no other kind of LoRA file is opened.",
                    code="not-safetensors",
                )
            have = ", ".join(e.name for e in self.entries()[:10]) or "none yet"
            raise BadInput(
                f"There is no LoRA {name[:80]!r}: give a name of the library ({have}), a .safetensors "
                f"file or a folder with {PEFT_WEIGHTS}.",
                code="no-lora",
            )
        if path.stat().st_size > _MOST_BYTES:
            raise BadInput(f"{path.name} has more than 2 GB; that is not a LoRA.", code="too-large")
        config = path.with_name(PEFT_CONFIG)
        beside = path != own and path.name == PEFT_WEIGHTS and config.is_file()
        try:
            raw = path.read_bytes()
            return with_config(raw, config.read_bytes()) if beside else raw
        except OSError as exc:
            raise BadInput(
                f"{path.name} cannot be read ({exc.strerror}).", code="unreadable"
            ) from exc

    def put(self, name: str, raw: bytes, *, replace: bool = False) -> Path:
        """Keep a file under a name.

        Raises:
            BadInput: when the name is taken (and not to be replaced) or impossible.
            StoreError: when the disk refuses.
        """
        path = self.path(name)
        if not write_atomic(path, raw, temp=self.folder, overwrite=replace):
            text = f"There is a LoRA {name!r} already; choose another name or replace it."
            raise BadInput(text, code="name-taken", field="name")
        return path

    def rename(self, name: str, to: str) -> None:
        """Give a file of the library another name.

        Raises:
            BadInput: when there is none of this name, or the new one is taken or impossible.
            StoreError: when the disk refuses.
        """
        if name == to:
            return
        if not self.path(name).is_file():
            raise BadInput(f"There is no LoRA {name[:80]!r} in the library.", code="no-lora")
        self.put(to, self.get(name))  # first the new one: whatever happens, one of both is there
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file from the library; edits that used it keep theirs.

        Raises:
            BadInput: when there is none.
            StoreError: when the disk refuses.
        """
        path = self.path(name)
        try:
            path.unlink()
        except FileNotFoundError as exc:
            text = f"There is no LoRA {name[:80]!r} in the library."
            raise BadInput(text, code="no-lora") from exc
        except OSError as exc:
            raise StoreError(f"{path.name} cannot be removed ({exc.strerror}).") from exc

    def reference(self, name: str, weight: float = 1.0) -> LoraRef:
        """A LoRA as a request names it: its bytes are kept in the history, for replay and export.

        Raises:
            BadInput: when there is none of this name or path, or it is not a LoRA.
            StoreError: when the disk refuses.
        """
        from workbench.diffusion.lora_files import read

        raw = self.get(name)
        label = label_of(name)
        read(raw, Path(name).name)  # says so now if it is none
        return LoraRef(id=self._store.put_blob(raw, "safetensors"), name=label, weight=weight)


def train_lora(edit: PreparedEdit, start: LoraRef | None) -> bytes:
    """Train the LoRA of a prepared edit, from `start` where one is given; the file's bytes.

    Raises:
        BadInput: when `start` has another rank.
        ModelError: when the weights became NaN.
    """
    import torch  # the library above is read by pages, which do not wait for it

    from workbench.diffusion.lora import initial_state, random_draws, train
    from workbench.diffusion.lora_files import write
    from workbench.diffusion.lora_format import rank_of

    request, run, config = edit.request, edit.runtime, edit.request.lora
    before = edit.lora_file(start, style=False) if start is not None else None
    begin = before.weights if before is not None else None
    seed = request.seed
    if start is not None:  # going on with the noise of the first time would teach less
        seed = int(keys.key("further", seed, start.id)[-15:], 16)
    if begin is not None and begin.keys() != initial_state(run.unet, 1, 0).keys():
        raise BadInput(
            "The LoRA to go on from is not a plain one of every attention layer, so training "
            "cannot go on from it; use it as it is, or train a new one.",
            code="cannot-continue",
        )
    if begin is not None and rank_of(begin) != config.rank:
        raise BadInput(
            f"The LoRA to go on from has rank {rank_of(begin)}, and the options say "
            f"{config.rank}; choose rank {rank_of(begin)}.",
            code="misfit",
        )
    mean, std, crop = _training_latent(edit)
    edit.text()  # notes what did not fit
    draws = random_draws(
        mean, std, batch=config.batch_size, seed=seed, crop=crop,
        levels=len(edit.schedule.alphas),
    )  # fmt: skip

    def on_progress(done: int, total: int, loss: float | None) -> None:
        edit.on_step(StepInfo(stage="lora", step=done, total=total, loss=loss))

    edit.on_step(StepInfo(stage="lora", step=0, total=config.steps))
    made = train(
        run.unet, edit.schedule, run.prompt(request.prompt, edit.image.size), config, draws,
        start=begin or initial_state(run.unet, config.rank, seed), graphs=run.graphs,
        on_step=on_progress,
    )  # fmt: skip
    if not all(bool(torch.isfinite(t).all()) for t in made.state.values()):
        raise ModelError(
            edit.nan_text("training the LoRA", "a lower learning rate"), code="not-finite"
        )
    edit.report.lora_losses = made.losses
    return write(made.state, _card(edit, before.card.steps if before is not None else 0))


def _training_latent(edit: PreparedEdit) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, standard deviation and crop (latent cells) for training at `resolution`."""
    resolution, factor = edit.request.lora.resolution, edit.runtime.factor
    if not resolution:
        return *edit.encoded(), 0
    width, height = edit.image.size
    scale = resolution / min(width, height)
    size = tuple(max(factor, round(side * scale / factor) * factor) for side in (width, height))
    scaled = decode.resize(edit.image.rgb, (size[0], size[1]), "bilinear")
    mean, std = edit.runtime.encode(edit.image.pixels(scaled))
    return mean, std, resolution // factor


def _card(edit: PreparedEdit, before: int) -> LoraCard:
    """Origin of the LoRA; it had been trained for `before` steps already."""
    request = edit.request
    return LoraCard(
        model=edit.runtime.fingerprint,
        model_name=edit.runtime.name,
        image=request.image.id,
        image_name=request.image.name,
        prompt=request.prompt,
        rank=request.lora.rank,
        steps=before + request.lora.steps,
        seed=request.seed,
        config=dataclasses.asdict(request.lora),
    )
