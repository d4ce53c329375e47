"""Tables and comparisons on rows whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal

from benchmarks import report
from benchmarks.compare import comparison
from benchmarks.rows import ResultLog, read_records
from workbench.cli import BAD_INPUT, OK, main

SETUP: dict[str, Any] = {
    "benchmark": "scenes", "set": 5, "set_version": 1, "scenes_version": 1, "model": "wb1:m",
    "model_name": "storybook", "lora": {"steps": 80}, "inversion": {"steps": 50}, "seed": 0,
    "git": "abcdef0123456789", "changed": False, "machine": "a computer",
    "environment": {"torch": "2", "device": "cpu", "dtype": "fp32", "threads": "1"},
    "locators": {"features": "storybook.x"},
}  # fmt: skip
KINDS = ("face", "robot", "animal")


def row(index: int, method: str, left: float, **more: Any) -> dict[str, Any]:
    """A drag of 20 px to the right from (10, 10) that stopped `left` px short of its target."""
    found = [[30.0 - left, 10.0, 0.9]]
    return {
        "kind": "row", "drag": f"drag {index}", "index": index, "scene": KINDS[index % 3],
        "size": ("8-16 px", "16-32 px")[index % 2], "pairs": 1 + index % 2, "length": 20.0,
        "arrows": [[10.0, 10.0, 30.0, 10.0]], "method": method, "edit_key": None,
        "left_features": left, "left_template": left, "share_features": left / 20,
        "share_template": left / 20, "found_features": found, "found_template": found,
        "mae": left, "mae_source": 20.0, "mae_ratio": left / 20, "ssim": 1 - left / 40,
        "ssim_source": 0.5, "ssim_ratio": left / 20, "outside_max": 0.0, "outside_mean": 0.0,
        "cpu": 2.0, "wall": 3.0, "steps": 4, "stop": "REACHED", **more,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]], **setup: Any) -> Path:
    with ResultLog(path, resume=False) as book:
        book.begin({**SETUP, **setup})
        for r in rows:
            book.add(r)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """`nothing` leaves 20 px, `auto` 4 +- 1, `warp` 10 +- 4, of 24 drags; `warp` lacks the last 12."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        rows += [row(i, "nothing", 20.0), row(i, "auto", 4 + float(rng.uniform(-1, 1)))]
        if i < 12:
            rows.append(row(i, "warp", 10 + float(rng.uniform(-4, 4))))
    return write(tmp_path / "rows.jsonl", rows)


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(start))


def test_the_overall_table(file: Path) -> None:
    text = report.tables(read_records([file]))
    assert "24 drags of set 5" in text and "abcdef0123" in text
    nothing = line(text, "| nothing | 24 |").split(" | ")
    assert nothing[2] == "20.0 [20.0, 20.0]" and nothing[4] == "100% [100%, 100%]"
    mean, low, high = (
        float(v.strip("[]"))
        for v in line(text, "| auto | 24 |").split(" | ")[2].replace(",", "").split()
    )
    assert 3 <= low < mean < high <= 5 and mean == pytest.approx(4, abs=0.4)
    assert line(text, "| warp | 12 |")
    assert "auto stopped: REACHED 24." in text


def test_only_drags_that_all_methods_have(file: Path) -> None:
    text = report.tables(read_records([file]), common=True)
    assert line(text, "| nothing | 12 |") and line(text, "| auto | 12 |")


def test_groups_hold_their_own_drags(tmp_path: Path) -> None:
    rows = [row(i, "auto", {0: 2.0, 1: 6.0, 2: 10.0}[i % 3]) for i in range(18)]
    text = report.tables(read_records([write(tmp_path / "r.jsonl", rows)]))
    assert line(text, "| face | 6 |") == "| face | 6 | 2.0 [2.0, 2.0] |"
    assert line(text, "| animal | 6 |") == "| animal | 6 | 10.0 [10.0, 10.0] |"
    by_size = [r for r in text.splitlines() if r.startswith(("| 8-16", "| 16-32"))]
    assert [r.split(" | ")[0] for r in by_size[:2]] == ["| 8-16 px", "| 16-32 px"]
    assert "6.0" in line(text, "| face | auto | 6 |") or "2.0 (10%)" in line(
        text, "| face | auto |"
    )


def test_a_failed_drag_is_counted_and_no_figure(tmp_path: Path) -> None:
    failed = {"kind": "row", "drag": "drag 9", "index": 9, "method": "auto", "error": "NaN"}
    rows = [row(0, "auto", 2.0), row(1, "auto", 4.0), failed]
    text = report.tables(read_records([write(tmp_path / "r.jsonl", rows)]))
    assert line(text, "| auto | 2 |")
    assert "auto stopped: REACHED 2, FAILED 1." in text


def test_agreement_is_the_distance_of_the_two_locators(tmp_path: Path) -> None:
    apart = [0.0, 0.0, 1.0, 2.0, 7.0]
    rows = [
        row(i, "truth", 0.0, found_features=[[30.0 + d, 10.0, 1.0]]) for i, d in enumerate(apart)
    ]
    text = report.tables(read_records([write(tmp_path / "r.jsonl", rows)]))
    cells = line(text, "| truth | 5 | 2.0 [").split(" | ")
    assert cells[3] == "1.0" and cells[4] == "80%"


def test_arrows_that_are_lost_in_the_truth_itself_can_be_left_out(tmp_path: Path) -> None:
    rows = []
    for i in range(8):
        lost = i % 2 == 1  # its twin is found in the truth, 15 px away
        rows.append(row(i, "truth", 15.0 if lost else 0.5))
        rows.append(row(i, "auto", 15.0 if lost else 2.0))
    text = report.tables(read_records([write(tmp_path / "r.jsonl", rows)]))
    start = text.index("Arrows that both locators find")
    assert line(text[start:], "| auto | 4 | 4 |") == "| auto | 4 | 4 | 2.0 | 2.0 | 10% | 10% |"
    assert line(text, "| auto | 8 | 8.5")


def test_a_figure_that_is_null_is_left_out(tmp_path: Path) -> None:
    rows = [row(0, "auto", 2.0, ssim_ratio=None), row(1, "auto", 4.0)]
    figures = report.good_rows(read_records([write(tmp_path / "r.jsonl", rows)]))
    assert report.interval(figures, "ssim_ratio").n == 1


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert report.tables(read_records([write(tmp_path / "r.jsonl", [])])) == (
        "There is nothing to show."
    )


# --- compare ----------------------------------------------------------------------------------------------


def test_two_methods_of_a_file(file: Path) -> None:
    text = comparison("warp", "auto", [file])
    assert "12 drags in common" in text
    assert line(text, "| left px (features) |").endswith("| better |")
    assert line(text, "| CPU s |").endswith("| within noise |")
    backwards = comparison("auto", "warp", [file])
    assert line(backwards, "| left px (features) |").endswith("| worse |")
    assert line(backwards, "| SSIM to truth |").endswith("| worse |")  # where more is better


def test_two_runs_of_the_same_methods(file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    other = write(
        tmp_path / "other.jsonl", [row(i, "auto", 4 + float(rng.uniform(-1, 1))) for i in range(24)]
    )
    text = comparison(str(file), str(other))
    assert "auto (other.jsonl) against auto (rows.jsonl), 24 drags" in text
    assert line(text, "| left px (features) |").endswith("| within noise |")
    assert "warp" not in text
    assert "12 drags" in comparison(f"{file}:warp", f"{other}:auto")


def test_what_cannot_be_compared_is_said(file: Path, tmp_path: Path) -> None:
    with refusal("unknown-name"):
        comparison("warp", "gooddrag", [file])
    lonely = write(tmp_path / "l.jsonl", [row(99, "auto", 1.0)])
    with refusal("no-common-drag"):
        comparison(str(file), str(lonely))
    strange = write(tmp_path / "s.jsonl", [row(1, "gooddrag", 1.0)])
    with refusal("no-common-method"):
        comparison(str(file), str(strange))


# --- commands ---------------------------------------------------------------------------------------------


def test_the_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scenes", "--report", str(file)]) == OK
    assert "24 drags of set 5" in capsys.readouterr().out
    assert main(["bench", "compare", "nothing", "auto", "--in", str(file)]) == OK
    assert "24 drags in common" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "best"], "no method 'best'"),
        (["--drags", "0"], "0 drags were asked for"),
        (["--seed", "-1"], "seed is -1"),
        (["--shard", "3/2"], "'3/2' is not a part"),
        (["--shard", "1/5", "--drags", "2"], "cannot be shared by 5"),
        (["--threads", "-1"], "--threads is -1"),
        (["--lora-steps", "-1"], "--lora-steps is -1"),
        (["--report", "nowhere.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "scenes", *args]) == BAD_INPUT
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_choice_between_two_candidates_is_reported(tmp_path: Path) -> None:
    """Of 8 drags drawing is better by 0.2 on 4, worse by 0.05 on 2, and the same on 2."""
    rows = []
    for i in range(8):
        moved, drawn = 10.0, 6.0 if i < 4 else 11.0 if i < 6 else 10.1
        took = "draft" if i in (0, 1, 2, 4, 6) else "moved"  # wrongly on 3 and 4
        known = {"level": "well" if i < 4 else "poorly", "psnr": 30.0 - i, "noise": 0.1 * i}
        chosen = {"choice": {"result": took}, "knows": known}
        rows += [
            row(i, "auto", drawn if took == "draft" else moved, open_mae=20.0, **chosen),
            row(i, "auto:moved", moved, open_mae=30.0, knows=known),
            row(i, "auto:drawn", drawn, open_mae=18.0, knows=known),
        ]
    text = report.tables(read_records([write(tmp_path / "r.jsonl", rows)]))
    assert "Choice of auto: the moved picture on 3 of 8 drags." in text
    assert "| error / nothing (MAE) | 0.03 | 6 | 2 | 4 | 4 (67%) |" in text
    assert "| error / nothing (MAE) | 0.1 | 4 | 0 | 4 | 3 (75%) |" in text
    assert line(text, "| always moved |").split(" | ")[1] == "0.50 [0.50, 0.50]"
    assert line(text, "| who knows the truth |").split(" | ")[1].startswith("0.40")
    assert line(text, "| well | 4 | 27.0 to 30.0 | 0.00 to 0.30 |").split(" | ")[4] == "-0.20"
    assert line(text, "| quarter 4 by noise error | 2 |").split(" | ")[6] == "-12.0"


def test_without_candidates_nothing_is_said_of_a_choice(file: Path) -> None:
    assert "Choice of" not in report.tables(read_records([file]))
