"""Other people's sets of drags: what is read, what is refused, and that nothing is executed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from benchmarks.readers import MANIFEST_KIND, find_samples
from benchmarks.unpickle import MAX_OPS, read_pickle
from workbench.core.errors import BadInput
from workbench.core.request import PointPair
from workbench.imaging.decode import encode_mask_png, encode_png

SIZE = (48, 40)  # width, height


def rgb() -> np.ndarray[Any, Any]:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([x * 5, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


def painted() -> np.ndarray[Any, Any]:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[8:30, 10:40] = 1
    return mask


def meta(**more: Any) -> dict[str, Any]:
    points = [[12, 14], [30, 14], (20.0, 25.0), (21, 30)]
    return {"prompt": "a robot", "points": points, "mask": painted(), **more}


def dragbench(top: Path, name: str = "animals/one", raw: bytes | None = None, **more: Any) -> Path:
    folder = top / name
    folder.mkdir(parents=True)
    (folder / "original_image.png").write_bytes(encode_png(rgb()))
    (folder / "user_drag.png").write_bytes(encode_png(rgb()))
    (folder / "meta_data.pkl").write_bytes(raw if raw is not None else pickle.dumps(meta(**more)))
    return folder


def only(top: Path) -> Any:
    (entry,) = find_samples(top)
    return entry.read()


def arrows(pairs: tuple[PointPair, ...]) -> list[list[float]]:
    return [p.to_json() for p in pairs]


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["uint8", "float32", "bool", ">f8", "int64"])
def test_dragbenchs_folders_in_every_protocol(tmp_path: Path, protocol: int, kind: str) -> None:
    given = meta(mask=painted().astype(kind), points=[[np.int64(12), 14], [30, np.float32(14)]])
    dragbench(tmp_path, raw=pickle.dumps(given, protocol))
    sample = only(tmp_path)
    assert (sample.name, sample.category, sample.prompt) == ("animals/one", "animals", "a robot")
    assert arrows(sample.pairs) == [[12, 14, 30, 14]]
    assert np.array_equal(sample.rgb, rgb())
    assert np.array_equal(sample.mask, painted().astype(bool))


def test_numpy_1s_names_and_fortran_order_are_read() -> None:
    made = np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4))
    raw = pickle.dumps({"a": made, "n": np.float32(2.5)}, 2)
    assert b"numpy._core" in raw  # this is numpy 2; DragBench was made with numpy 1
    for text in (raw, raw.replace(b"numpy._core", b"numpy.core")):
        found = read_pickle(text, "x")
        assert np.array_equal(found["a"], made)
        assert found["a"].dtype == np.int16
        assert found["n"] == 2.5


def test_a_mask_with_channels_and_one_without_paint(tmp_path: Path) -> None:
    stacked = np.stack([painted(), np.ones_like(painted())], axis=-1)
    dragbench(tmp_path / "a", mask=stacked)
    assert np.array_equal(only(tmp_path / "a").mask, painted().astype(bool))
    dragbench(tmp_path / "b", mask=np.zeros(SIZE[::-1], np.float32))
    assert only(tmp_path / "b").mask is None


def test_gooddrags_folders(tmp_path: Path) -> None:
    folder = tmp_path / "cat_2"
    folder.mkdir()
    (folder / "original.jpg").write_bytes(encode_png(rgb()))  # what it is counts, not its name
    (folder / "points.json").write_text('{"points": [[12, 14], [30, 14.5]]}')
    mask = np.zeros((*SIZE[::-1], 3), np.uint8)
    mask[..., 0] = painted() * 255
    (folder / "mask.png").write_bytes(encode_png(mask))
    sample = only(tmp_path)
    assert (sample.name, sample.category, sample.prompt) == ("cat_2", "", "")
    assert arrows(sample.pairs) == [[12, 14, 30, 14.5]]
    assert np.array_equal(sample.mask, painted().astype(bool))
    assert only(folder).key == sample.key  # one picture's folder is a set, too


def manifest(top: Path, *samples: dict[str, Any], **more: Any) -> Path:
    top.mkdir(exist_ok=True)
    (top / "a.png").write_bytes(encode_png(rgb()))
    (top / "m.png").write_bytes(encode_mask_png(painted().astype(bool)))
    path = top / "manifest.json"
    path.write_text(
        json.dumps({"kind": MANIFEST_KIND, "format": 1, "samples": list(samples), **more})
    )
    return path


def listed(**more: Any) -> dict[str, Any]:
    return {"name": "one", "image": "a.png", "mask": "m.png", "pairs": [[12, 14, 30, 14]], **more}


def test_our_manifest(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, listed(category="robots", prompt="x"), listed(name="auto", mask="auto"),
        listed(name="whole", mask=None),
    )  # fmt: skip
    auto, one, whole = (entry.read() for entry in find_samples(path))
    assert (one.name, one.category, one.prompt) == ("one", "robots", "x")
    assert np.array_equal(one.mask, painted().astype(bool))
    assert whole.mask is None
    assert auto.mask is not None
    assert auto.mask[14, 12] and not auto.mask.all()
    assert [e.name for e in find_samples(tmp_path)] == ["auto", "one", "whole"]


def test_the_key_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    dragbench(tmp_path / "a", "animals/one")
    dragbench(tmp_path / "b", "other_objects/two")
    dragbench(tmp_path / "c", "animals/one", points=[[12, 14], [31, 14]])
    dragbench(tmp_path / "d", "animals/one", mask=1 - painted())
    found = [only(tmp_path / n).key for n in "abcd"]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_samples_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("z/1", "a/2", "m/0", "a/1"):
        dragbench(tmp_path, name)
    assert [e.name for e in find_samples(tmp_path)] == ["a/1", "a/2", "m/0", "z/1"]


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"prompt": 3}, "wrong-type"),
        ({"prompt": "x" * 3000}, "too-long"),
        ({"points": [[1, 2]]}, "not-a-pair"),
        ({"points": []}, "pair-count"),
        ({"points": [[1, 2, 3], [4, 5, 6]]}, "points-shape"),
        ({"points": [[1, 2], ["a", 3]]}, "not-finite"),
        ({"points": [[1, 2], [float("nan"), 3]]}, "not-finite"),
        ({"points": [[1, 2], [480, 3]]}, "outside-picture"),
        ({"mask": np.ones((3, 5))}, "mask-size"),
        ({"mask": "none"}, "not-a-mask"),
    ],
)
def test_what_is_wrong_with_a_drag_is_named(tmp_path: Path, more: Any, code: str) -> None:
    dragbench(tmp_path, **more)
    with refusal(code) as caught:
        only(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with refusal("no-folder"):
        find_samples(tmp_path / "nowhere")
    with refusal("no-drags"):
        find_samples(tmp_path)
    folder = dragbench(tmp_path / "a")
    (folder / "original_image.png").unlink()
    with refusal("unreadable"):
        only(tmp_path / "a")
    dragbench(tmp_path / "b", raw=pickle.dumps({"prompt": "", "points": []}))
    with refusal("missing"):
        only(tmp_path / "b")
    dragbench(tmp_path / "c", raw=pickle.dumps([1, 2]))
    with refusal("not-a-dictionary"):
        only(tmp_path / "c")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png", "", 3])
def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path, name: Any) -> None:
    (tmp_path / "secret.png").write_bytes(encode_png(rgb()))
    path = manifest(tmp_path / "set", listed(image=name))
    with refusal("outside-folder" if isinstance(name, str) and name else "no-file"):
        only(path)


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    for change, code in (
        ({"kind": "other"}, "other-kind"),
        ({"format": 2}, "newer-format"),
        ({"samples": []}, "sample-count"),
        ({"samples": [listed(), listed()]}, "bad-name"),
    ):
        path = manifest(tmp_path, listed(), **change)
        with refusal(code):
            find_samples(path)
    path.write_text("{")
    with refusal("not-json"):
        find_samples(path)


# --- pickles ----------------------------------------------------------------------------------------------


class Planted:
    """Unpickled by Python itself, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_fault_26_the_premise_pickle_runs_what_it_is_told(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Planted(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("protocol", range(6))
def test_fault_26_a_hostile_pickle_is_refused_and_nothing_runs(
    tmp_path: Path, protocol: int
) -> None:
    hostile = meta(extra=Planted(tmp_path / "made"))
    dragbench(tmp_path / "set", raw=pickle.dumps(hostile, protocol))
    with refusal("refused-pickle") as e:
        only(tmp_path / "set")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "made").exists()


def state_of(array: Any, **change: Any) -> bytes:
    """A pickle of an array with its state as a crafted file may have it."""
    names = ("version", "shape", "dtype", "fortran", "raw")
    state = {**dict(zip(names, array.__reduce__()[2], strict=True)), **change}

    class Crafted:
        def __reduce__(self) -> Any:
            return (*array.__reduce__()[:2], tuple(state[n] for n in names))

    return pickle.dumps(Crafted(), 2)


LONG_PUT = b"\x80\x02]r" + struct.pack("<I", 2**31) + b"."
OPS = {
    "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.",
    "eval": b"c__builtin__\neval\n(S'1'\ntR.",
    "numpy's own loader": b"cnumpy\nload\n(S'x'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "an instance": b"(i__main__\nX\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pfile\n.",
    "a wild memo": LONG_PUT,
    "a changed function": b"cnumpy\ndtype\n}S'x'\nI1\nsb.",
    "a name alone": b"cnumpy\ndtype\n.",
    "records": b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.",
    "objects": pickle.dumps(np.array([1, "a"], object)),
    "a codec": b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
    "a huge shape": state_of(np.zeros(3), shape=(2**40,)),
    "a negative shape": state_of(np.zeros(3), shape=(-3,)),
    "bytes that do not fit": state_of(np.zeros(3), raw=b"123"),
    "an array as a key": b"\x80\x02}" + pickle.dumps(np.zeros(2), 2)[2:-1] + b"K\x01s.",
    "too many": pickle.dumps([[] for _ in range(MAX_OPS)]),
}


@pytest.mark.parametrize("name", OPS)
def test_fault_26_instructions_that_are_not_on_the_list(name: str) -> None:
    with refusal("refused-pickle") as caught:
        read_pickle(OPS[name], "meta_data.pkl")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("raw", [b"", b"\xffhello", b"\x80\x05", pickle.dumps(meta())[:-40]])
def test_fault_26_what_is_no_pickle(raw: bytes) -> None:
    with refusal("damaged"):
        read_pickle(raw, "meta_data.pkl")


def test_fault_26_shared_parts_do_not_explode() -> None:
    bomb: Any = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    with refusal("refused-pickle"):
        read_pickle(pickle.dumps(bomb), "meta_data.pkl")


@given(st.data())
def test_fault_26_mutated_pickles_raise_nothing_but_bad_input(data: st.DataObject) -> None:
    protocol = data.draw(st.integers(0, 5))
    raw = bytearray(pickle.dumps(meta(mask=painted()[:6, :6]), protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadInput):
        read_pickle(bytes(raw), "meta_data.pkl")
