"""Photographs with a known truth: cut-outs, faces with landmarks, frames; on folders made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.photos import (
    MOVES,
    SIDE,
    photo_drags,
    read_tem,
    similarity,
)
from workbench.core.errors import BadInput
from workbench.drag.tracking import Template
from workbench.imaging.decode import encode_png, resize

U8 = np.ndarray


def photo(seed: int, side: int = 300) -> U8:
    """Smooth coloured noise at two scales: something to find again, like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (side, side), "bicubic")
    fine = resize(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8), (side, side), "bicubic")
    return ((2 * coarse.astype(int) + fine) // 3).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    for n in range(6):
        (made / f"p{n}.png").write_bytes(encode_png(photo(n)))
    lines = [
        {"file": f"p{n}.png", "caption": [f"picture {n}"], "held_out": n > 1} for n in range(6)
    ]
    (made / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return made


def test_cutouts_are_balanced_repeatable_and_of_held_out_pictures(folder: Path) -> None:
    first, second = (photo_drags("cutouts", folder, 9, 7) for _ in range(2))
    assert [d.key for d in first] == [d.key for d in second]
    assert [d.kind for d in first] == list(MOVES) * 3
    assert {d.caption for d in first} <= {f"picture {n}" for n in range(2, 6)}
    a, b = first[4].pictures(), second[4].pictures()
    np.testing.assert_array_equal(a.source, b.source)
    assert photo_drags("cutouts", folder, 9, 8)[0].key != first[0].key


def test_what_is_at_a_handle_is_at_its_target_in_the_truth(folder: Path) -> None:
    """The truth moves by what the arrows say: found again by its pixels."""
    for drag in photo_drags("cutouts", folder, 6, 3):
        seen = drag.pictures()
        assert seen.source.shape == (SIDE, SIDE, 3)
        assert seen.region.any()
        assert seen.mask[seen.region].all()
        for pair in drag.pairs:
            hit = Template().find(seen.source, seen.truth, pair)
            assert hit.point.distance(pair.target) < 3.0, (drag.key, hit)
        outside = np.abs(seen.source.astype(int) - seen.truth)[~seen.mask]
        assert outside.max(initial=0) <= 10


def test_a_mask_beside_a_photograph_is_its_foreground(folder: Path, tmp_path: Path) -> None:
    for n in (0, 1):
        (tmp_path / f"p{n}.png").write_bytes((folder / f"p{n}.png").read_bytes())
        square = np.zeros((300, 300), np.uint8)
        square[110:190, 110:190] = 255
        (tmp_path / f"p{n}.mask.png").write_bytes(encode_png(np.repeat(square[..., None], 3, 2)))
    drag = photo_drags("cutouts", tmp_path, 1, 0)[0]
    seen = drag.pictures()
    # of 300 px, brought to 256 and shown at 1 / 1.6: a square of 43 px
    assert 0.5 * 2 * 43**2 < seen.region.sum() < 1.2 * 2 * 43**2


def test_what_is_cut_out_is_laid_over_what_is_not_and_held_where_it_is(
    folder: Path, tmp_path: Path
) -> None:
    for n in range(4):
        (tmp_path / f"p{n}.png").write_bytes((folder / f"p{n}.png").read_bytes())
    red = np.tile(np.array([250, 0, 0], np.uint8), (300, 300, 1))
    (tmp_path / "p2.png").write_bytes(encode_png(red))
    ring = np.zeros((300, 300), np.uint8)
    ring[60:240, 60:240] = 255
    ring[100:200, 100:200] = 0  # nothing in the middle
    (tmp_path / "p2.mask.png").write_bytes(encode_png(np.repeat(ring[..., None], 3, 2)))
    drags = photo_drags("cutouts", tmp_path, 9, 4)
    assert all(d.key.endswith("-p2") for d in drags)
    for drag in drags:
        seen = drag.pictures()
        for pair in drag.pairs:
            for rgb, p in ((seen.source, pair.handle), (seen.truth, pair.target)):
                np.testing.assert_allclose(rgb[round(p.y), round(p.x)], (250, 0, 0), atol=3)


def write_tem(path: Path, points: np.ndarray) -> None:
    lines = [str(len(points)), *(f"{x} {y}" for x, y in points), "1", "0", "2", "0 1"]
    path.write_text("\n".join(lines))


def faces(folder: Path, people: int = 2) -> np.ndarray:
    """One picture twice, shifted as a whole, with two landmarks that move besides; their points."""
    rng = np.random.default_rng(1)
    points = rng.uniform(60, 340, (30, 2))
    for kind in ("neutral_front", "smiling_front"):
        (folder / kind).mkdir()
    for n in range(people):
        rgb = photo(20 + n, 400)
        (folder / "neutral_front" / f"00{n}_03.png").write_bytes(encode_png(rgb))
        write_tem(folder / "neutral_front" / f"00{n}_03.tem", points)
        other = np.roll(rgb, (12, -7), (0, 1))
        moved = points + np.array([-7, 12])
        moved[[3, 8]] += (20, 10)
        (folder / "smiling_front" / f"00{n}_08.png").write_bytes(encode_png(other))
        write_tem(folder / "smiling_front" / f"00{n}_08.tem", moved)
    return points


def test_pairs_of_faces_are_aligned_and_drag_what_moved_most(tmp_path: Path) -> None:
    faces(tmp_path)
    found = photo_drags("landmarks", tmp_path, 10, 0)
    assert [d.key for d in found] == ["face-000", "face-001"]
    drag = found[0]
    assert 1 <= len(drag.pairs) <= 3
    longest = max(p.length for p in drag.pairs)
    assert longest > 3 * min(0.5, longest)
    seen = drag.pictures()
    # the shift of the whole is gone: away from the rim, the second picture lies on the first
    inner = np.s_[80:176, 80:176]
    assert np.abs(seen.source.astype(int) - seen.truth)[inner].mean() < 12


def test_a_similarity_is_found_from_points() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 100, (20, 2))
    z = (1.2 * np.exp(0.3j)) * (a[:, 0] + 1j * a[:, 1]) + (5 - 3j)
    m, t = similarity(a, np.stack([z.real, z.imag], axis=1))
    assert m == pytest.approx(1.2 * np.exp(0.3j))
    assert t == pytest.approx(5 - 3j)


def test_a_template_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("", "three\n1 2", "3\n1 2\n3 4", "3\n1 2\n3 4\n5 x"):
        (tmp_path / "a.tem").write_text(text)
        with pytest.raises(BadInput):
            read_tem(tmp_path / "a.tem")


def test_frames_of_a_video_are_read(tmp_path: Path) -> None:
    entry = tmp_path / "clip-1"
    entry.mkdir()
    rgb = photo(40, 512)
    (entry / "source.png").write_bytes(encode_png(rgb))
    (entry / "target.png").write_bytes(encode_png(np.roll(rgb, 20, 1)))
    data = {"points": [[200, 256], [220, 256]], "prompt": "a stone"}
    (entry / "points.json").write_text(json.dumps(data))
    drag = photo_drags("pairs", tmp_path, 5, 0)[0]
    assert drag.caption == "a stone"
    assert drag.length == pytest.approx(10)  # 20 of 512 px are 10 of 256
    seen = drag.pictures()
    shifted = metrics.mae(np.roll(seen.source, 10, 1)[:, 20:], seen.truth[:, 20:])
    assert shifted < 0.3 * metrics.mae(seen.source, seen.truth)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for kind in ("cutouts", "landmarks", "pairs"):
        with pytest.raises(BadInput):
            photo_drags(kind, tmp_path, 3, 0)
    for count in (0, 10_000):
        with pytest.raises(BadInput):
            photo_drags("cutouts", tmp_path, count, 0)
    with pytest.raises(BadInput):
        photo_drags("cutouts", tmp_path / "none", 3, 0)
