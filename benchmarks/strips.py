"""Picture strips of a benchmark: source with arrows, what each method made of it, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes import AnyDrag
from workbench.canvas.overlay import overlay
from workbench.canvas.sheets import sheet
from workbench.core.errors import BadInput
from workbench.imaging.decode import encode_png
from workbench.storage.history import Store

Row = Mapping[str, Any]
LEFT_OUT = ("nothing", "truth")  # they stand in every strip anyway


def write_strips(
    folder: Path,
    drags: Sequence[AnyDrag],
    rows: Mapping[tuple[str, str], Row],
    methods: Sequence[str],
    store: Store,
    cell: int = 256,
) -> list[Path]:
    """A PNG per drag in `folder`, named after it; methods without a result are left out.

    Raises:
        BadInput: when the folder cannot be written.
    """
    written = []
    for drag in drags:
        picture = strip_of(drag, rows, methods, store, cell)
        path = folder / f"{drag.index + 1:03d}-{drag.key}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(picture))
        except OSError as exc:
            raise BadInput(f"{path} cannot be written ({exc.strerror}).") from exc
        written.append(path)
    return written


def strip_of(
    drag: AnyDrag,
    rows: Mapping[tuple[str, str], Row],
    methods: Sequence[str],
    store: Store,
    cell: int,
) -> NDArray[np.uint8]:
    """One row of labelled pictures, uint8 [h, w, 3]."""
    seen = drag.pictures()
    pictures = [overlay(seen.source, seen.mask, drag.pairs)]
    labels = [f"source\n{drag.length:.0f} px"]
    for method in methods:
        row = rows.get((drag.key, method))
        if method in LEFT_OUT or row is None or row.get("error") or not row.get("image"):
            continue
        pictures.append(store.image(str(row["image"])))
        labels.append(
            f"{method}\n{_px(row, 'left_features')} / {_px(row, 'left_template')} px left, "
            f"error {_px(row, 'mae_ratio', 2)}"
        )
    pictures.append(seen.truth)
    labels.append("truth\n")
    return sheet(pictures, labels, columns=len(pictures), cell=cell)


def _px(row: Row, name: str, digits: int = 0) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:.{digits}f}"
