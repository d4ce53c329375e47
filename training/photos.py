"""A folder of pictures with `captions.jsonl`: read, checked, decoded, split.

Each line of the file is a JSON object:

    {"file": "pets/00012.jpg", "caption": "a photo of a siamese cat", "weight": 0.5, "held_out": true}

`file` is relative to the folder. `caption` is a text or a list of texts that are used in turn.
`weight` (1 if left out) says how often a picture is drawn in relation to the others. Pictures with
`held_out` are never trained on; if no line has it, one in twenty is held out, 200 at most, chosen
by the hash of its name. Other keys (source, licence ...) are kept for the model card. A picture of
another size than 256x256 is scaled along its shorter side and cut in the middle.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import SIZE
from workbench.core.errors import BadInput

CAPTIONS = "captions.jsonl"
HELD_OUT = 200


@dataclass(frozen=True, slots=True)
class Photo:
    """One line of `captions.jsonl`."""

    path: Path
    captions: tuple[str, ...]
    weight: float
    source: str
    licence: str


def read_photos(folder: Path) -> tuple[list[Photo], list[Photo]]:
    """The photographs to train on, and those that are held out.

    Raises:
        BadInput: the file is missing, a line says too little, a picture is not there, or fewer
            than two pictures are left to train on.
    """
    listing = folder / CAPTIONS
    if not listing.is_file():
        raise BadInput(
            f"There is no {CAPTIONS} in {folder}; write one line of JSON per picture.",
            code="no-captions",
        )
    photos: list[Photo] = []
    marked: list[bool] = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            photo, held_out = _photo(folder, number, line)
            photos.append(photo)
            marked.append(held_out)
    if not any(marked):
        count = min(HELD_OUT, len(photos) // 20)
        order = sorted(range(len(photos)), key=lambda i: _hash(photos[i].path.name))
        chosen = set(order[:count])
        marked = [index in chosen for index in range(len(photos))]
    training = [photo for photo, held in zip(photos, marked, strict=True) if not held]
    if len(training) < 2:
        raise BadInput(
            f"{listing} names {len(training)} pictures to train on; give at least 2.",
            code="too-few",
        )
    return training, [photo for photo, held in zip(photos, marked, strict=True) if held]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _photo(folder: Path, number: int, line: str) -> tuple[Photo, bool]:
    where = f"Line {number} of {CAPTIONS}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadInput(
            f"{where} is not JSON ({error}); write one object per line.", code="not-json"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise BadInput(
            f"{where} names no 'file'; give the picture's path inside the folder.", code="no-file"
        )
    captions = row.get("caption", "")
    captions = [captions] if isinstance(captions, str) else captions
    weight = row.get("weight", 1.0)
    if not (isinstance(captions, list) and captions and all(isinstance(c, str) for c in captions)):
        raise BadInput(f"{where}: 'caption' must be a text or a list of texts.", code="wrong-type")
    if not isinstance(weight, int | float) or not 0 <= weight < 1e6:
        raise BadInput(
            f"{where}: 'weight' is {weight!r}; give a number of at least 0.", code="out-of-range"
        )
    path = folder / row["file"]
    if not path.is_file():
        raise BadInput(
            f"{where} names {row['file']!r}, which is not in {folder}.", code="missing-file"
        )
    photo = Photo(
        path,
        tuple(captions),
        float(weight),
        str(row.get("source", "")),
        str(row.get("licence", "")),
    )
    return photo, bool(row.get("held_out", False))


def decode(photos: Sequence[Photo], threads: int = 16) -> Tensor:
    """The pictures as uint8 [N,3,256,256], on the CPU.

    Raises:
        BadInput: a file is not a picture that Pillow reads.
    """
    out = np.empty((len(photos), SIZE, SIZE, 3), np.uint8)

    def place(index: int) -> None:
        out[index] = _decoded(photos[index].path)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(place, range(len(photos))))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def _decoded(path: Path) -> Any:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path.name} cannot be read as a picture ({error}).", code="unreadable"
        ) from error
    if picture.size != (SIZE, SIZE):
        picture = ImageOps.fit(picture, (SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def origins(photos: Sequence[Photo]) -> list[dict[str, Any]]:
    """Number of pictures by source and licence, most first."""
    counts = Counter((photo.source, photo.licence) for photo in photos)
    return [
        {"source": source, "licence": licence, "pictures": count}
        for (source, licence), count in counts.most_common()
    ]
