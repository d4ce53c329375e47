"""Records of a speed run, and the tables made from them."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from workbench.core.errors import BadInput

Record = dict[str, Any]
# rows of the stage table: name, the baseline's stages, ours. What ours does once per picture and the
# baseline at every run stands in the same row.
ROWS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("load", ("load",), ("load",)),
    ("train", ("train",), ("encode", "lora")),
    ("invert", ("invert",), ("invert", "reference")),
    ("drag", ("drag",), ("drag",)),
    ("denoise", ("denoise",), ("denoise",)),
    ("decode", ("decode",), ("decode", "save")),
)


class Sink:
    """Keeps records, writes each as a line of JSON at once, and says what matters on the way."""

    def __init__(self, path: Path | None = None) -> None:
        """Nothing is opened yet."""
        self.records: list[Record] = []
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Sink:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as exc:
                raise BadInput(f"{self._path} cannot be written ({exc.strerror}).") from exc
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, kind: str, **facts: Any) -> None:
        """One measurement."""
        record = {"kind": kind, **facts}
        self.records.append(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        line = _line(record)
        if line:
            self.say(line)

    @staticmethod
    def say(text: str) -> None:
        """To standard output, at once."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def read_records(path: Path) -> list[Record]:
    """The records of an earlier run.

    Raises:
        BadInput: when the file cannot be read or is none of ours.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as exc:
        raise BadInput(f"{path} cannot be read as the records of a speed run ({exc}).") from exc
    if not all(isinstance(r, dict) and "kind" in r for r in records):
        raise BadInput(f"{path} holds no records of a speed run.")
    return records


def _line(r: Record) -> str:
    """A record as one line for who is watching."""
    if r["kind"] == "setup":
        return (
            f"{r['model']} at {r['size']} px on {r['device']} ({r['machine']}), {r['dtype']}, "
            f"{r['threads']} threads, torch {r['torch']}; ready after {r['ready']:.1f} s; "
            f"matrix peak {r['peak_flops'] / 1e12:.2f} TFLOP/s"
        )
    if r["kind"] == "run":
        parts = ", ".join(
            f"{n} {s['full']:.3f}" for n, s in r["stages"].items() if s["full"] >= 5e-4
        )
        note = "" if r["full"] == r["seconds"] else f" (measured {r['seconds']:.2f} s)"
        return f"{r['what']:11} {r['side']:8} {r['full']:8.2f} s{note}: {parts}"
    if r["kind"] == "growth":
        return f"growth: {r['what']} {r['n']}: {_ms(r['step_seconds'])} per step"
    if r["kind"] in ("skipped", "failed"):
        why = r.get("why") or f"needs {r['needs']} s, and {r['spent']} s are gone"
        return f"{r['kind']}: {r['part']} ({why})"
    return ""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


# --- tables ---------------------------------------------------------------------------------------------


def tables(records: Sequence[Record]) -> str:
    """Everything as Markdown: stages, totals, memory, growth."""
    setup = next((r for r in records if r["kind"] == "setup"), None)
    if setup is None:
        return "There is nothing to show."
    runs = [r for r in records if r["kind"] == "run"]
    parts = ["", _line(setup), ""]
    if setup.get("clock") == "cpu":
        parts += ["Seconds are CPU seconds of the process.", ""]
    if setup["quick"]:
        p, f = setup["plan"], setup["full"]
        parts += [
            f"Runs had {p['lora']} of {f['lora']} LoRA steps, {p['drag']} of {f['drag']} drag steps "
            f"and {p['ddim']} of {f['ddim']} DDIM steps; what is missing was added at the measured "
            "steady step, so seconds below are those of a full edit.",
            "",
        ]
    parts += _stage_table(records, runs, float(setup["peak_flops"]))
    parts += _totals(runs, bool(setup["trains"]))
    parts += _memory(runs)
    parts += _growth(records)
    parts += [f"Not done: {r['part']}." for r in records if r["kind"] in ("skipped", "failed")]
    return "\n".join(parts)


def _sum(run: Record, names: Iterable[str], field: str = "full") -> float:
    return sum(float(run["stages"][n][field]) for n in names if n in run["stages"])


def _middle(values: Sequence[float]) -> str:
    """Median, and the range where there are several."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.3g}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.3g} to {max(values):.3g})"


def _of(runs: Sequence[Record], what: str, side: str) -> list[Record]:
    return [r for r in runs if r["what"] == what and r["side"] == side]


def _stage_table(records: Sequence[Record], runs: Sequence[Record], peak: float) -> list[str]:
    theirs, ours = _of(runs, "first", "baseline"), _of(runs, "first", "ours")
    if not theirs and not ours:
        return []
    flops = {(r["side"], r["stage"]): float(r["full"]) for r in records if r["kind"] == "flops"}
    out = [
        "| stage | baseline s | ours s | ratio | TFLOP | TFLOP ours | of peak | of peak ours "
        "| peak MB | peak MB ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, a, b in ROWS:
        x, y = [_sum(r, a) for r in theirs], [_sum(r, b) for r in ours]
        if not sum(x) and not sum(y):
            continue
        work = [sum(flops.get((side, n), 0.0) for n in names)
                for side, names in (("baseline", a), ("ours", b))]  # fmt: skip
        share = [
            f"{w / statistics.median(t) / peak:.0%}" if t and statistics.median(t) and w else "-"
            for w, t in zip(work, (x, y), strict=True)
        ]
        memory = [_peak_of(theirs, a), _peak_of(ours, b)]
        out.append(
            f"| {name} | {_middle(x)} | {_middle(y)} | {_ratio(x, y)} | {work[0] / 1e12:.3g} | "
            f"{work[1] / 1e12:.3g} | {share[0]} | {share[1]} | {memory[0]} | {memory[1]} |"
        )
    return [*out, ""]


def _peak_of(runs: Sequence[Record], names: Sequence[str]) -> str:
    sizes = (int(r["stages"][n]["peak_bytes"]) for r in runs for n in names if n in r["stages"])
    most = max(sizes, default=0)
    return f"{most / 1e6:.0f}" if most else "-"


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Median of theirs over median of ours."""
    if not theirs or not ours or not statistics.median(ours):
        return "-"
    return f"{statistics.median(theirs) / statistics.median(ours):.2f}x"


def second_run(run: Record) -> float:
    """Time of the reference's second drag on a picture: one reload, and all but the training."""
    loads = run["stages"].get("load", {"full": 0.0, "steps": 1})
    once = float(loads["full"]) / max(1, int(loads["steps"]))
    return float(run["full"]) - _sum(run, ("train", "load")) + once


def _totals(runs: Sequence[Record], trains: bool) -> list[str]:
    theirs = _of(runs, "first", "baseline")
    first, again = [float(r["full"]) for r in theirs], [second_run(r) for r in theirs]
    rows = [
        ("first edit" if trains else "first edit, no LoRA", first, "first"),
        ("second drag on a cached picture", again, "second"),
        ("warp on a cached picture", again, "warp"),
    ]
    out = ["| total | baseline s | ours s | ratio |", "|---|---|---|---|"]
    for name, base, what in rows:
        mine = [float(r["full"]) for r in _of(runs, what, "ours")]
        if mine or base:
            out.append(f"| {name} | {_middle(base)} | {_middle(mine)} | {_ratio(base, mine)} |")
    out.append("")
    for what, title in (("full first", "First edit"), ("full second", "Second drag")):
        for r in _of(runs, what, "ours"):
            lora = _sum(r, ("lora",))
            drag = r["stages"].get("drag", {}).get("step_seconds")
            trained = f", LoRA {lora:.2f} s" if lora > 0.01 else ""
            out.append(
                f"{title} at full length: {r['seconds']:.2f} s{trained}, a drag step {_ms(drag)}."
            )
    waits = [r for r in runs if r["side"] == "ours" and r["what"] != "low memory"]
    if waits:
        out += [
            f"First progress after at most {max(float(r['first_progress']) for r in waits):.2f} s; "
            f"longest time between two reports {max(float(r['longest_wait']) for r in waits):.2f} s.",
            "",
        ]
    return out


def _memory(runs: Sequence[Record]) -> list[str]:
    out = ["| peak memory | MB | at |", "|---|---|---|"]
    for what, side in (("first", "baseline"), ("first", "ours"), ("second", "ours"),
                       ("full first", "ours"), ("low memory", "ours")):  # fmt: skip
        found = [
            (int(s["peak_bytes"]), n) for r in _of(runs, what, side) for n, s in r["stages"].items()
        ]
        size, at = max(found, default=(0, ""))
        if size:
            out.append(f"| {side}, {what} | {size / 1e6:.0f} | {at} |")
    return [*out, ""] if len(out) > 2 else []


def _growth(records: Sequence[Record]) -> list[str]:
    found = [r for r in records if r["kind"] == "growth" and r["step_seconds"]]
    pairs: dict[int, list[float]] = {}
    for r in found:
        if r["what"] == "pairs":
            pairs.setdefault(int(r["n"]), []).append(float(r["step_seconds"]))
    out: list[str] = []
    if 1 in pairs:
        one = statistics.mean(pairs[1])
        rows = [f"{n} pairs {statistics.mean(v) / one:.2f}x" for n, v in pairs.items() if n > 1]
        out.append(f"A drag step with 1 pair takes {_ms(one)}; with {', '.join(rows)} of that.")
    pixels = [(int(r["n"]), float(r["step_seconds"])) for r in found if r["what"] == "pixels"]
    if pixels:
        each = ", ".join(f"{n} px {_ms(s)} ({s / n * 1e9:.0f} ns per px)" for n, s in pixels)
        out.append(f"A drag step by pixels: {each}.")
    return [*out, ""] if out else []
