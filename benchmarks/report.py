"""Tables of a quality benchmark: means with 95 % bootstrap intervals, overall and per group."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.judge import finite
from benchmarks.rows import Record, rows_of
from benchmarks.stats import Interval, mean_interval

WITHIN = 3.0  # px: the goal for the locators' agreement on truth pictures


@dataclass(frozen=True, slots=True)
class Figure:
    """A column: a number in each row, its heading, and how it is shown."""

    name: str
    title: str
    digits: int = 2
    percent: bool = False
    lower_is_better: bool = True

    def show(self, value: float) -> str:
        """The value as the tables show it; '-' for none."""
        if value != value:
            return "-"
        return f"{value:.0%}" if self.percent else f"{value:.{self.digits}f}"

    def cell(self, i: Interval) -> str:
        """Mean and interval."""
        if i.n == 0:
            return "-"
        if i.low != i.low:
            return self.show(i.mean)
        return f"{self.show(i.mean)} [{self.show(i.low)}, {self.show(i.high)}]"


FIGURES = (
    Figure("left_features", "left px (features)", 1),
    Figure("left_template", "left px (template)", 1),
    Figure("share_features", "left, share (features)", percent=True),
    Figure("share_template", "left, share (template)", percent=True),
    Figure("mae_ratio", "error / nothing (MAE)"),
    Figure("ssim_ratio", "error / nothing (1-SSIM)"),
    Figure("mae", "MAE to truth", 1),
    Figure("ssim", "SSIM to truth", 3, lower_is_better=False),
    Figure("outside_max", "outside, max", 1),
    Figure("outside_mean", "outside, mean", 3),
    Figure("cpu", "CPU s", 1),
    Figure("wall", "wall s", 1),
    Figure("steps", "steps", 0),
)
BY_NAME = {f.name: f for f in FIGURES}
ACCURACY, COST = FIGURES[:8], FIGURES[8:]
GROUPED = ("left_features", "left_template", "mae_ratio", "ssim_ratio")
GROUPS: tuple[tuple[str, str, Callable[[Record], str]], ...] = (
    ("kind of scene", "kind", lambda r: str(r["scene"])),
    ("length of the drag", "length", lambda r: str(r["size"])),
    ("number of pairs", "pairs", lambda r: str(r["pairs"])),
)
# sanity first, then by name as they were asked for
_ORDER = (
    "nothing",
    "truth",
    "roundtrip",
    "pixelwarp",
    "moved",
    "dragdiffusion",
    "gooddrag",
    "warp",
    "auto",
    "refined",
)


def good_rows(records: Iterable[Record], *, common: bool = False) -> list[Record]:
    """Rows that hold figures; with `common` only of drags that every method has."""
    rows = [r for r in rows_of(records).values() if not r.get("error")]
    if common:
        has: dict[str, set[str]] = {}
        for r in rows:
            has.setdefault(r["drag"], set()).add(r["method"])
        every = set(methods_of(rows))
        rows = [r for r in rows if has[r["drag"]] == every]
    return sorted(rows, key=lambda r: int(r["index"]))


def methods_of(rows: Iterable[Record]) -> list[str]:
    """The methods of some rows, in the order of the tables."""
    found = {str(r["method"]) for r in rows}
    return sorted(found, key=lambda m: (_ORDER.index(m) if m in _ORDER else len(_ORDER), m))


def tables(records: Sequence[Record], *, common: bool = False) -> str:
    """Everything as Markdown."""
    rows = good_rows(records, common=common)
    setups = [r for r in records if r["kind"] == "setup"]
    if not rows or not setups:
        return "There is nothing to show."
    parts = [_head(setups, rows), "", *overall(rows, ACCURACY), "", *overall(rows, COST)]
    for title, short, group in GROUPS:
        for name in GROUPED:
            parts += ["", f"{BY_NAME[name].title}, by {title}:", ""]
            parts += grouped(rows, BY_NAME[name], short, group)
    parts += ["", *before_and_after(rows), "", *agreement(rows), "", *trusted(rows), ""]
    parts += [*judged(rows), *stops(records), ""]
    parts += preparation(records)
    return "\n".join(parts).rstrip()


def interval(rows: Iterable[Record], name: str) -> Interval:
    """Mean and interval of a figure over rows."""
    return mean_interval([finite(r.get(name)) for r in rows])


def overall(rows: Sequence[Record], figures: Sequence[Figure]) -> list[str]:
    """Methods x figures."""
    out = ["| method | drags | " + " | ".join(f.title for f in figures) + " |"]
    out.append("|---" * (len(figures) + 2) + "|")
    for method in methods_of(rows):
        mine = [r for r in rows if r["method"] == method]
        cells = [f.cell(interval(mine, f.name)) for f in figures]
        out.append(f"| {method} | {len(mine)} | " + " | ".join(cells) + " |")
    return out


def grouped(
    rows: Sequence[Record], figure: Figure, short: str, group: Callable[[Record], str]
) -> list[str]:
    """One figure: groups x methods, with the number of drags in the group."""
    methods = [m for m in methods_of(rows) if m != "truth"]
    out = [f"| {short} | drags | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    names = sorted({group(r) for r in rows}, key=lambda n: (len(n.split("-")[0]), n))
    if short == "kind":
        names = sorted(names)
    for name in names:
        mine = [r for r in rows if group(r) == name]
        cells = [
            figure.cell(interval([r for r in mine if r["method"] == m], figure.name))
            for m in methods
        ]
        drags = len({r["drag"] for r in mine})
        out.append(f"| {name} | {drags} | " + " | ".join(cells) + " |")
    return out


def before_and_after(rows: Sequence[Record]) -> list[str]:
    """Per kind: distance to the target and error to the truth, of the source and of each method."""
    methods = [m for m in methods_of(rows) if m not in ("nothing", "truth")]
    out = [
        "Per kind, before -> after:",
        "",
        "| kind | method | drags | arrow px | left px (features) | left px (template) | "
        "MAE source -> result | SSIM source -> result |",
        "|---" * 8 + "|",
    ]
    for kind in sorted({str(r["scene"]) for r in rows}):
        for method in methods:
            mine = [r for r in rows if r["scene"] == kind and r["method"] == method]
            if not mine:
                continue
            m = {n: interval(mine, n).mean for n in (
                "length", "left_features", "left_template", "mae_source", "mae", "ssim_source",
                "ssim")}  # fmt: skip
            out.append(
                f"| {kind} | {method} | {len(mine)} | {m['length']:.1f} | {m['left_features']:.1f} "
                f"({m['left_features'] / m['length']:.0%}) | {m['left_template']:.1f} "
                f"({m['left_template'] / m['length']:.0%}) | {m['mae_source']:.1f} -> {m['mae']:.1f} "
                f"| {m['ssim_source']:.3f} -> {m['ssim']:.3f} |"
            )
    return out


def agreement(rows: Sequence[Record]) -> list[str]:
    """Distance between the two locators' answers, per arrow: on the truth, and on results."""
    out = ["| picture | arrows | mean px apart | median | within 3 px | both lie near the target |"]
    out.append("|---" * 6 + "|")
    for method in methods_of(rows):
        apart, near = [], []
        for r in rows:
            if r["method"] != method:
                continue
            points = zip(r["found_features"], r["found_template"], r["arrows"], strict=True)
            for f, t, (_, _, x, y) in points:
                apart.append(_distance(f, t))
                near.append(max(_distance(f, (x, y)), _distance(t, (x, y))) <= WITHIN)
        if not apart:
            continue
        i = mean_interval(apart)
        share = sum(d <= WITHIN for d in apart) / len(apart)
        out.append(
            f"| {method} | {len(apart)} | {Figure('', '', 1).cell(i)} | "
            f"{statistics.median(apart):.1f} | {share:.0%} | {sum(near) / len(near):.0%} |"
        )
    return ["Agreement of the two locators:", "", *out]


def trusted(rows: Sequence[Record]) -> list[str]:
    """Distances on the arrows alone that both locators find in the truth, within `WITHIN` px.

    A thing that has a twin (petals, corners of a mouth) or that turns out of sight is found in the
    wrong place even in the true picture; what is left over there says nothing about a method.
    """
    good: dict[str, list[int]] = {}
    for r in rows:
        if r["method"] == "truth":
            ends = zip(r["found_features"], r["found_template"], r["arrows"], strict=True)
            good[r["drag"]] = [
                i for i, (f, t, (_, _, x, y)) in enumerate(ends)
                if max(_distance(f, (x, y)), _distance(t, (x, y))) <= WITHIN
            ]  # fmt: skip
    if not any(good.values()):
        return []
    out = [
        "Arrows that both locators find within 3 px in the true picture:",
        "",
        "| method | drags | arrows | left px (features) | left px (template) | "
        "left, share (features) | left, share (template) |",
        "|---" * 7 + "|",
    ]
    for method in methods_of(rows):
        columns: list[list[float]] = [[], [], [], []]
        arrows = 0
        for r in rows:
            if r["method"] != method or not good.get(r["drag"]):
                continue
            chosen = good[r["drag"]]
            arrows += len(chosen)
            for k, name in enumerate(("found_features", "found_template")):
                left = [_distance(r[name][i], r["arrows"][i][2:]) for i in chosen]
                long = [_distance(r["arrows"][i][:2], r["arrows"][i][2:]) for i in chosen]
                columns[k].append(statistics.mean(left))
                columns[k + 2].append(
                    statistics.mean(a / b for a, b in zip(left, long, strict=True))
                )
        cells = [
            Figure("", "", 1, percent=k >= 2).cell(mean_interval(c)) for k, c in enumerate(columns)
        ]
        out.append(f"| {method} | {len(columns[0])} | {arrows} | " + " | ".join(cells) + " |")
    return out


# of doing nothing: candidates whose errors differ by more than this differ visibly, or plainly
VISIBLE, PLAIN = 0.03, 0.1
LEVELS = ("well", "partly", "poorly")
_OPEN = (
    Figure("open_mae", "MAE where the move cannot be trusted", 1),
    Figure("open_ssim", "SSIM there", 3, lower_is_better=False),
)


def judged(rows: Sequence[Record]) -> list[str]:
    """Choice of `auto` between the moved and the drawn picture, where a run measured both (`--judge`).

    How often the better one was chosen where they differ; what always taking one of them, the judge,
    and who knows the truth (the better one by each figure) reach; and what drawing gains by how well
    the model knows the picture.
    """
    found = {(str(r["drag"]), str(r["method"])): r for r in rows}
    out: list[str] = []
    for method in methods_of(rows):
        mine = [
            r for r in rows if r["method"] == method and (r["drag"], f"{method}:moved") in found
        ]
        if not mine:
            continue
        moved, drawn = (
            [found[r["drag"], f"{method}:{n}"] for r in mine] for n in ("moved", "drawn")
        )
        took = sum(r["choice"]["result"] == "moved" for r in mine)
        out += [f"Choice of {method}: the moved picture on {took} of {len(mine)} drags.", ""]
        out += [*_right(mine, moved, drawn), "", *_reached(mine, moved, drawn), ""]
        out += [*_known(mine, moved, drawn), ""]
    return out


def _right(chosen: Sequence[Record], moved: Sequence[Record], drawn: Sequence[Record]) -> list[str]:
    """Drags whose candidates differ, and how often the better one was chosen."""
    out = [
        "| figure | differ by more than | drags | moved is better | drawn is better | chosen rightly |"
    ]
    out.append("|---" * 6 + "|")
    for name in ("mae_ratio", "ssim_ratio"):
        for least in (VISIBLE, PLAIN):
            errors = [
                tuple(finite(r.get(name)) for r in same)
                for same in zip(chosen, moved, drawn, strict=True)
            ]
            errors = [(c, m, d) for c, m, d in errors if abs(m - d) > least]
            better = sum(m < d for _, m, d in errors)
            right = sum(abs(c - min(m, d)) < abs(c - max(m, d)) for c, m, d in errors)
            share = f" ({right / len(errors):.0%})" if errors else ""
            out.append(
                f"| {BY_NAME[name].title} | {least} | {len(errors)} | {better} | {len(errors) - better} "
                f"| {right}{share} |"
            )
    return out


def _reached(
    chosen: Sequence[Record], moved: Sequence[Record], drawn: Sequence[Record]
) -> list[str]:
    """Means of what each way of choosing reaches."""
    figures = (BY_NAME["mae_ratio"], BY_NAME["ssim_ratio"], *_OPEN)
    out = ["| choice | " + " | ".join(f.title for f in figures) + " |"]
    out.append("|---" * (len(figures) + 1) + "|")
    ways = {"always moved": (moved,), "always drawn": (drawn,), "the judge": (chosen,),
            "who knows the truth": (moved, drawn)}  # fmt: skip
    for name, of in ways.items():
        cells = []
        for f in figures:
            best = min if f.lower_is_better else max
            values = [best(finite(r.get(f.name)) for r in same) for same in zip(*of, strict=True)]
            cells.append(f.cell(mean_interval(values)))
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


def _known(chosen: Sequence[Record], moved: Sequence[Record], drawn: Sequence[Record]) -> list[str]:
    """What drawing gains (below 0) and costs, by how well the model knows the picture."""
    figures = (BY_NAME["mae_ratio"], BY_NAME["ssim_ratio"], *_OPEN)
    out = [
        "Drawn minus moved (errors below 0: drawing is better), by what the model knows of the picture:",
        "",
        "| known | drags | round trip dB | noise error | "
        + " | ".join(f.title for f in figures)
        + " |",
        "|---" * (len(figures) + 4) + "|",
    ]
    both = list(zip(chosen, moved, drawn, strict=True))
    groups = {level: [t for t in both if t[0]["knows"]["level"] == level] for level in LEVELS}
    order = sorted(both, key=lambda t: finite(t[0]["knows"]["noise"]))
    for n in range(4):
        part = order[n * len(order) // 4 : (n + 1) * len(order) // 4]
        groups[f"quarter {n + 1} by noise error"] = part
    for name, part in groups.items():
        if not part:
            continue
        ranges = [
            f"{min(v):.{digits}f} to {max(v):.{digits}f}"
            for key, digits in (("psnr", 1), ("noise", 2))
            for v in [[finite(r["knows"][key]) for r, _, _ in part]]
        ]
        cells = [
            f.cell(
                mean_interval([finite(d.get(f.name)) - finite(m.get(f.name)) for _, m, d in part])
            )
            for f in figures
        ]
        out.append(f"| {name} | {len(part)} | " + " | ".join([*ranges, *cells]) + " |")
    return out


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return float(((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5)


def stops(records: Sequence[Record]) -> list[str]:
    """Why the methods stopped, and what failed."""
    out = []
    rows = rows_of(records).values()
    for method in methods_of(rows):
        found = Counter(
            "FAILED" if r.get("error") else str(r.get("stop") or "")
            for r in rows
            if r["method"] == method
        )
        found.pop("", None)
        if found:
            text = ", ".join(f"{name} {n}" for name, n in found.most_common())
            out.append(f"{method} stopped: {text}.")
    return out


def preparation(records: Sequence[Record]) -> list[str]:
    """Preparation time of a picture before its first drag, where it was not cached."""
    made = [r for r in records if r["kind"] == "prepared" and "lora" not in r["cached"]]
    if not made:
        return []
    cpu, wall = interval(made, "cpu"), interval(made, "wall")
    show = Figure("", "", 1)
    return [
        f"Preparing a picture (LoRA, inversion, the original's pass; once for all methods): "
        f"{show.cell(cpu)} CPU s, {show.cell(wall)} wall s over {len(made)} pictures."
    ]


def _versions(setup: Record) -> str:
    """Versions of a drawn set; photographs have none."""
    if "set_version" not in setup:
        return ""
    return f" (set version {setup['set_version']}, scenes version {setup['scenes_version']})"


def _head(setups: Sequence[Record], rows: Sequence[Record]) -> str:
    s = setups[0]
    env = s["environment"]
    gits = sorted({str(x["git"])[:10] + ("+" if x.get("changed") else "") for x in setups})
    drags = len({r["drag"] for r in rows})
    return (
        f"{drags} drags of set {s['set']}{_versions(s)}, model {s['model_name']} "
        f"({s['model'][:16]}), torch {env['torch']}, {env['device']} {env['dtype']}, "
        f"{env['threads']} threads, {s['machine']}; code {', '.join(gits)}. "
        f"Locator by features: {s['locators']['features']}."
    )
