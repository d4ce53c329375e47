"""What a result's PNG says about its own making, and how that is read back.

The chunk holds the request with all parameters and the mask; the source picture is named by its id
and comes from the history, where it is.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import __version__
from workbench.core.errors import BadInput, StoreError
from workbench.core.record import EditRecord
from workbench.core.request import EditRequest
from workbench.imaging import decode
from workbench.imaging.resample import connected as spread
from workbench.storage.history import Store

FORMAT = 1
_FAINT, _SOLID = 48, 88  # levels of ink (255 - colour): up to here a haze on white, then a thing
_MOST_MASK = 160 * 1024  # bytes of PNG; the chunk as a whole has a limit too


@dataclass(frozen=True, slots=True)
class Restored:
    """An edit read from a PNG: a request that fits into this history, and what could not be."""

    request: EditRequest
    edit: str  # id of the edit that made the picture, where it was made
    notices: tuple[str, ...] = ()


def card(record: EditRecord, store: Store) -> dict[str, Any]:
    """The JSON that goes into the PNG of an edit's result."""
    data = card_of_request(record.request, record.id)
    if record.request.mask is not None:
        raw = decode.encode_mask_png(store.mask(record.request.mask.id))
        if len(raw) <= _MOST_MASK:
            data["mask"] = base64.b64encode(raw).decode("ascii")
    return data


def card_of_request(request: EditRequest, edit: str = "") -> dict[str, Any]:
    """The JSON of a request without its mask; `edit` is the id of what it made, "" for nothing yet."""
    return {
        "format": FORMAT,
        "workbench": __version__,
        "edit": edit,
        "request": request.to_json(),
    }


def result_png(record: EditRecord, store: Store, *, with_card: bool = True) -> bytes:
    """The result of an edit as a PNG to take away: alpha of its picture, and the card if wanted.

    Raises:
        BadInput: when the edit has no result.
        StoreError: when its picture is missing or was changed.
    """
    if record.result is None:
        raise BadInput(f"The edit {record.id} has no result; it is {record.status.value}.")
    rgb, alpha = store.image(record.result.image), alpha_of(record.request, store)
    if alpha is not None:
        alpha = followed(alpha, store.image(record.request.image.id), rgb)
    return decode.encode_png(
        rgb,
        alpha=alpha,
        edit=card(record, store) if with_card else None,
    )


def followed(
    alpha: NDArray[np.uint8], before: NDArray[np.uint8], after: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The alpha channel after an edit: it goes along with what was moved.

    The model sees and gives back pictures on white, so what is opaque has to be told from what
    changed: clearly more ink than the alpha there allows is something that was moved onto it, and is
    opaque; white where ink was, connected to what is transparent, is the place that it left. White
    inside of a thing (the white of an eye) stays what it was.

    Args:
        alpha: of the picture before, [H,W], 0 to 255.
        before: the picture on white, [H,W,3].
        after: the edited picture on white, [H,W,3].

    Returns:
        [H,W]; equal to `alpha` where nothing changed.
    """
    had, has = (255 - rgb.min(axis=2).astype(np.int16) for rgb in (before, after))
    changed = (before != after).any(axis=2)
    over = np.where(changed, has - alpha, 0)
    share = np.clip((over - _FAINT) / (_SOLID - _FAINT), 0, 1)  # soft, for soft edges
    out = np.maximum(alpha, np.rint(255 * share).astype(np.uint8))
    blank = (alpha == 0) & (has <= _FAINT)
    left = changed & (alpha > 0) & (had > _FAINT) & (has <= _FAINT)
    out[left & spread(blank, blank | left)] = 0
    return out


def alpha_of(request: EditRequest, store: Store) -> NDArray[np.uint8] | None:
    """The alpha channel [H,W] of a request's picture, or None.

    Raises:
        StoreError: when it is missing or does not fit the picture.
    """
    if request.image.alpha is None:
        return None
    from workbench.storage.history.blobs import decode_png

    alpha = decode_png(store.blob(request.image.alpha), "L")
    if alpha.shape != (request.image.height, request.image.width):
        raise StoreError("The picture's alpha channel has another size than the picture.")
    return alpha


def restore(data: Mapping[str, Any], rgb: NDArray[np.uint8], store: Store) -> Restored:
    """Read a card; `rgb` [H,W,3] is the picture that carried it.

    Where the source picture is not in this history, the carried picture takes its place.

    Raises:
        BadInput: when the card is damaged or of a newer format.
    """
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise BadInput(
            f"The picture's edit settings have format {data.get('format')!r:.20}, and this version "
            f"reads {FORMAT}; the picture itself is fine."
        )
    request = EditRequest.from_json(data.get("request"), strict=False)
    notices = []
    height, width = rgb.shape[:2]
    if not store.has(request.image.id):
        if (request.image.width, request.image.height) != (width, height):
            raise BadInput("The picture's edit settings belong to a picture of another size.")
        asset = store.put_image(rgb, request.image.name)
        request = dataclasses.replace(request, image=asset, parent=None)
        notices.append("The original is not in this history: the arrows stand on the result.")
    elif data.get("edit"):
        notices.append("This is a result: its original, mask, arrows and settings are back.")
    mask = request.mask
    if mask is not None and not store.has(mask.id):
        painted = _mask(data.get("mask"), mask.width, mask.height)
        if painted is None:
            request = dataclasses.replace(request, mask=None)
            notices.append("The mask was too large to travel with the picture; paint it again.")
        else:
            request = dataclasses.replace(request, mask=store.put_mask(painted))
    gone = [x for x in (request.lora_file, request.style) if x and not store.has(x.id)]
    if gone:
        request = dataclasses.replace(
            request,
            lora_file=None if request.lora_file in gone else request.lora_file,
            style=None if request.style in gone else request.style,
        )
        names = " and ".join(repr(x.name or x.id) for x in gone)
        notices.append(f"The LoRA {names} is not in this history and was left out.")
    return Restored(request, str(data.get("edit", "")), tuple(notices))


def _mask(text: Any, width: int, height: int) -> NDArray[np.bool_] | None:
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadInput("The picture's edit settings hold a damaged mask.") from exc
    return decode.decode_mask(raw, width, height)
