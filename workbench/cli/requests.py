"""From files and options to an `EditRequest`: for `edit`, `train` and every line of `batch`."""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.app import App
from workbench.canvas.checklist import Code
from workbench.cli.parsers import configured, read_file
from workbench.core.config import (
    DragConfig,
    InversionConfig,
    LoraConfig,
    LoraRef,
    lora_preset,
    method_spec,
)
from workbench.core.errors import BadInput, Notice, StoreError
from workbench.core.request import EditRequest, ImageAsset, MaskAsset, ModelRef, PointPair
from workbench.imaging import decode, opening
from workbench.storage.archive import page


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was read and put into the history."""

    asset: ImageAsset
    rgb: NDArray[np.uint8]  # [H,W,3]
    notices: tuple[str, ...]
    card: dict[str, Any] | None  # what the file says about its own making


def read_picture(app: App, path: Path) -> Picture:
    """Decode a picture and put it into the history.

    Raises:
        BadInput: when the file is not a picture that can be worked on.
    """
    decoded = decode.decode(read_file(path, opening.MAX_BYTES), path.name)
    asset = app.store.put_image(decoded.rgb, decoded.name)
    if decoded.alpha is not None:
        out = io.BytesIO()
        Image.fromarray(decoded.alpha).save(out, "PNG")
        alpha = app.store.put_blob(out.getvalue(), "png")
        asset = dataclasses.replace(asset, alpha=alpha)
    return Picture(asset, decoded.rgb, decoded.notices, decoded.edit)


def read_parent(app: App, picture: Picture) -> str | None:
    """The id of the edit that made a picture, where this history has it and nothing was changed since.

    The new edit continues that one, as after "Edit this result" on the results page.
    """
    edit = (picture.card or {}).get("edit")
    if not isinstance(edit, str) or not edit:
        return None
    try:
        result = app.store.record(edit).result
    except (BadInput, StoreError):  # made elsewhere, thrown away, or unreadable: no parent here
        return None
    return edit if result is not None and result.image == picture.asset.id else None


def read_generation(
    app: App, picture: Picture, args: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    """Of a picture that `generate` made: what a request takes so that it needs no inversion.

    The PNG says how it was made. Where picture, model or prompt are no longer those, it is a picture
    like any other. Returns the request's further fields, and a sentence for the user or "".
    """
    if picture.card is None:
        return {}, ""
    try:
        made = page.restore(picture.card, picture.rgb, app.store).request
    except BadInput:
        return {}, ""  # the settings are damaged or newer; the picture is fine
    if made.generation is None or made.image.id != picture.asset.id:
        return {}, ""
    model = app.model_ref(app.model_for(picture.rgb, args.model or ""))
    if made.model.fingerprint != model.fingerprint:
        return {}, f"The picture was made by {made.model.name}, not {model.name}: it is inverted."
    if args.prompt and args.prompt != made.prompt:
        return {}, f"The picture was made from the prompt {made.prompt!r:.80}: it is inverted."
    more = {"generation": made.generation, "prompt": made.prompt}
    return (
        more,
        "The picture starts from the latents with which it was made: no LoRA, no inversion.",
    )


def read_mask(
    app: App,
    image: ImageAsset,
    rgb: NDArray[np.uint8],
    pairs: Sequence[PointPair],
    wanted: str | Path,
    *,
    invert: bool = False,
) -> tuple[MaskAsset | None, list[str]]:
    """The mask: from a file, "auto" (proposed from the arrows) or "whole" (all may change).

    Raises:
        BadInput: when the file is not a mask, or not of the picture's size.
    """
    if wanted == "whole" or (wanted == "auto" and not pairs):
        return None, []
    if wanted == "auto":
        from workbench.canvas.selection import propose

        mask = propose(rgb, pairs)
        return app.store.put_mask(mask), ["No mask was given: one was proposed from the arrows."]
    path = Path(wanted)
    raw = read_file(path, opening.MAX_BYTES)
    mask, notices = decode.read_mask(raw, image.width, image.height, path.name)
    if invert:
        mask = ~mask
    if not mask.any():
        return None, [*notices, f"{path.name} is empty, so the whole picture may change."]
    return app.store.put_mask(mask), list(notices)


def told(app: App, request: EditRequest, *, strict: bool) -> list[Notice]:
    """The findings about a request as lines: warnings, and how much of the picture may change.

    Raises:
        BadInput: code "strict", when `strict` and there is a warning.
    """
    found = app.check(request)
    warnings = [f for f in found if f.level == "warn"]
    if strict and warnings:
        text = " ".join(f.text for f in warnings)
        raise BadInput(f"Refused, because of --strict: {text}", code="strict",
                       findings=[f.to_json() for f in warnings])  # fmt: skip
    said = [f for f in found if f.level == "warn" or f.code in (Code.MASK_AREA, Code.MASK_FULL)]
    return [Notice(f"Warning: {f.text}" * (f.level == "warn") or f.text, f.code) for f in said]


def configs_of(
    args: argparse.Namespace, app: App
) -> tuple[LoraConfig, InversionConfig, DragConfig]:
    """The three configs: method and preset first, then each option that was given.

    Raises:
        BadInput: when a value is out of its range.
    """
    method = getattr(args, "method", None) or app.settings.method
    spec = method_spec(method)
    drag = spec.drag_config(getattr(args, "preset", None) or app.settings.preset)
    lora = lora_preset(getattr(args, "lora_preset", None) or "standard")
    inversion = configured(args, "inversion", spec.inversion_config())
    return configured(args, "lora", lora), inversion, configured(args, "drag", drag)


def lora_ref(app: App, name: str | None, weight: float) -> LoraRef | None:
    """A LoRA of the library by name, or a file by path, as a request names it.

    Raises:
        BadInput: when there is neither, or it is not a LoRA.
    """
    if not name:
        return None
    return app.loras.reference(name, weight)


def make_request(
    app: App,
    args: argparse.Namespace,
    *,
    image: ImageAsset,
    mask: MaskAsset | None,
    pairs: Sequence[PointPair],
    **more: Any,
) -> EditRequest:
    """Put a request together and name its model by fingerprint.

    Raises:
        BadInput: for anything out of range, an unknown model, a point outside the picture.
        ModelError: when the model's files are missing or damaged.
    """
    lora, inversion, drag = configs_of(args, app)
    request = EditRequest(
        image=image,
        mask=mask,
        pairs=tuple(pairs),
        model=ModelRef(name=app.model_for(app.store.image(image.id), args.model or "")),
        lora=lora,
        inversion=inversion,
        drag=drag,
        seed=args.seed,
        working_size=args.working_size,
        crop=args.crop,
        lora_file=lora_ref(app, args.lora, args.lora_weight),
        style=lora_ref(app, args.style, args.style_weight),
        **{"prompt": args.prompt or "", **more},
    )
    return app.complete(request)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what `edit`, `train` and `batch` have in common beside the configs."""
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the picture shows")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of LoRA training [default 0]"
    )
    parser.add_argument(
        "--working-size",
        type=int,
        default=0,
        metavar="PX",
        help="longest side during the edit [64 to 4096; default 0: the model's native size]",
    )
    parser.add_argument(
        "--crop",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="edit a big picture on a crop around its mask [default on]",
    )
    parser.add_argument("--lora", metavar="NAME|FILE", help="use this LoRA instead of training one")
    parser.add_argument(
        "--lora-weight", type=float, default=1.0, metavar="X", help="-4 to 4 [default 1]"
    )
    parser.add_argument("--style", metavar="NAME|FILE", help="stack this LoRA under the picture's")
    parser.add_argument(
        "--style-weight", type=float, default=1.0, metavar="X", help="-4 to 4 [default 1]"
    )


def write_file(path: Path, raw: bytes) -> None:
    """Write a result where a person asked for it, whole or not at all.

    Raises:
        StoreError: with the system's reason.
        BadInput: when the folder does not exist.
    """
    from workbench.storage.files import write_atomic

    if not path.parent.is_dir():
        raise BadInput(
            f"The folder {str(path.parent)!r:.200} does not exist; make it first.", code="no-folder"
        )
    if path.is_dir():
        raise BadInput(f"{str(path)!r:.200} is a folder; name a file.", code="is-folder")
    write_atomic(path, raw, temp=path.parent)
