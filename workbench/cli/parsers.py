"""Shared by the commands: a parser whose errors are one sentence, and options from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from workbench.core.config import (
    LORA_PRESETS,
    METHODS,
    STRENGTHS,
    DragConfig,
    InversionConfig,
    LoraConfig,
)
from workbench.core.errors import BadInput
from workbench.core.options import Option, options_of, range_text
from workbench.core.request import Point, PointPair
from workbench.storage.settings import Settings

T = TypeVar("T")
CONFIGS: tuple[tuple[str, type[Any], str], ...] = (
    ("lora", LoraConfig, "LoRA (the picture's own fine-tuning)"),
    ("inversion", InversionConfig, "inversion"),
    ("drag", DragConfig, "drag (defaults of dragdiffusion; other methods and presets have theirs)"),
)
_POINTS_LIMIT = 2**20


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `BadInput` instead of printing its usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As argparse's, but an option must be written out: new ones may make a short form mean
        something else.
        """  # fmt: skip
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False, **kwargs})
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but what is left over is refused here: the command that does not know an
        option says so, not the program as a whole, and names the options that it may have meant.

        Raises:
            BadInput: code "arguments", with the option as its field.
        """  # fmt: skip
        try:
            known, rest = super().parse_known_args(args, namespace)
        except argparse.ArgumentError as exc:
            name = exc.argument_name or ""
            raise self._refused(f"{name}: {exc.message}" if name else exc.message, name) from exc
        if rest:
            options = [o for o in self._option_string_actions if o.startswith("--")]
            close = difflib.get_close_matches(rest[0].partition("=")[0], options, n=2)
            close += [o for o in options if o.startswith(rest[0]) and o not in close][:2]
            meant = f", did you mean {' or '.join(close)}?" if close and rest[0] != "--" else ""
            raise self._refused(f"{rest[0]!r:.80} is not known here{meant}", rest[0])
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise self._refused(message, "")

    def _refused(self, text: str, field: str) -> BadInput:
        """One sentence, and where the help is."""
        stop = "" if text.endswith("?") else ";"
        text = f"{text[:1].upper()}{text[1:]}{stop} see '{self.prog} --help'."
        return BadInput(text, code="arguments", field=field)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the choices, and the one that was probably meant."""
        if action.choices is not None and value not in action.choices:
            choices = [str(c) for c in action.choices]
            near = difflib.get_close_matches(str(value), choices, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"{value!r:.80} is not known; {meant}")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r:.80} must be a whole number") from exc


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r:.80} must be a number") from exc


def option_name(field: str) -> str:
    """The option by which a field of a request is given: "lora.rank" is `--lora-rank`."""
    if field == "drag.method":
        return "--method"
    prefix, dot, name = field.partition(".")
    known = {"lora": "lora", "inversion": "inversion", "drag": "drag", "generation": "generate"}
    return f"--{known[prefix]}-{name.replace('_', '-')}" if dot and prefix in known else field


def describe(parser: argparse.ArgumentParser) -> None:
    """Give every command without a description the line that its parent's list has for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                text = texts.get(name, "")
                inner.description = inner.description or f"{text[:1].upper()}{text[1:]}."
                describe(inner)


def add_config(parser: argparse.ArgumentParser, prefix: str, cls: type[Any], title: str) -> None:
    """Add `--<prefix>-<field>` for every self-described field, with its range and default."""
    group = parser.add_argument_group(title)
    for name, (kind, default, opt) in options_of(cls).items():
        if (prefix, name) == ("drag", "method"):
            continue  # --method
        flags = [f"--{prefix}-{name.replace('_', '-')}"]
        if (prefix, name) == ("drag", "steps"):
            flags.append("--n-pix-steps")  # the name that the reference's users know
        dest = f"{prefix}.{name}"
        text = _help(opt, default, kind)
        if kind is bool:
            group.add_argument(
                *flags,
                dest=dest,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            group.add_argument(
                *flags,
                dest=dest,
                type=kind,
                choices=opt.choices or None,
                default=argparse.SUPPRESS,
                metavar={int: "N", float: "X"}.get(kind, "TEXT"),
                help=text,
            )


def _help(opt: Option, default: Any, kind: type[Any]) -> str:
    limits = range_text(opt) if kind is not bool else ""
    choices = f"one of {', '.join(map(str, opt.choices))}" if opt.choices else ""
    shown = f"{default:g}" if kind in (int, float) else default if default != "" else "none"
    facts = [p for p in (limits, choices, f"default {shown}") if p]
    return f"{opt.help} [{'; '.join(facts)}]".replace("%", "%%")


def configured(args: argparse.Namespace, prefix: str, base: T) -> T:
    """`base` with the options that were given on the command line.

    Raises:
        BadInput: when a value is out of its range.
    """
    start = f"{prefix}."
    given = {k[len(start) :]: v for k, v in vars(args).items() if k.startswith(start)}
    return dataclasses.replace(base, **given)  # type: ignore[type-var]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add model, device and dtype."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="registered name ('models list'), diffusers folder or .safetensors file "
        "[default: the settings', else storybook]",
    )
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps [default auto]")
    group.add_argument(
        "--dtype", choices=("auto", "fp32", "fp16", "bf16"), help="[default auto: fp16 on a GPU]"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add what every computing command knows: seed, quiet, JSON."""
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="machine-readable result on stdout")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add how many edits are computed at a time, and where."""
    parser.add_argument(
        "--workers",
        metavar="N",
        help="edits at a time: a number, auto (one per GPU), ray or ray://HOST:PORT "
        "[default: the settings']",
    )


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add what the commands that drag know: whether a warning stops them."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse what would only be warned about"
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add method and preset."""
    parser.add_argument("--method", choices=METHODS, help="drag method [default: the settings']")
    parser.add_argument(
        "--preset",
        choices=tuple(STRENGTHS),
        default="normal",
        help="how strongly to drag [default normal]",
    )
    parser.add_argument(
        "--lora-preset",
        choices=tuple(LORA_PRESETS),
        help="training: " + "; ".join(f"{k}: {p.description}" for k, p in LORA_PRESETS.items()),
    )


def add_dragging(parser: argparse.ArgumentParser) -> None:
    """Add what commands that drag one picture share: model, method, run, and every option."""
    add_model(parser)
    add_method(parser)
    add_run(parser)
    add_strict(parser)
    for prefix, cls, title in CONFIGS:
        add_config(parser, prefix, cls, title)


def pair(text: str) -> PointPair:
    """Read 'hx,hy:tx,ty', optionally followed by ':grow=G' and ':move=KIND'.

    Raises:
        argparse.ArgumentTypeError: saying what a pair looks like.
    """
    parts = text.split(":")
    more = dict(p.split("=", 1) for p in parts[2:] if "=" in p)
    try:
        numbers = [[float(v) for v in half.split(",")] for half in parts if "=" not in half]
        grow = float(more.pop("grow", 0.0))
    except ValueError:
        numbers, grow = [], 0.0
    good = [len(half) for half in numbers] == [2, 2]
    if not good or not all(math.isfinite(v) for half in numbers for v in half):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not a pair; write handle and target as x,y:x,y in image pixels, such as "
            "120,80:120,40, or 120,80:120,40:grow=0.5:move=turn"
        )
    move = more.pop("move", "auto")
    if more:
        raise argparse.ArgumentTypeError(
            f"a pair has no {next(iter(more))!r:.40}, only grow and move"
        )
    try:
        return PointPair(Point(*numbers[0]), Point(*numbers[1]), grow, move)
    except BadInput as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def read_points(path: Path) -> list[PointPair]:
    """Read pairs from JSON: [[hx,hy,tx,ty], ...] in any of the shapes that tools write.

    Also: handle and target in turn [[x,y], ...], nested [[[x,y],[x,y]], ...], objects with handle and
    target (start/end, from/to, source/target), lists of handles and of targets, all of it under
    "pairs", "points" or "arrows", DragGAN's numbered points, and lines of four numbers (CSV).

    Raises:
        BadInput: naming the file and the shape that is expected.
    """
    raw = read_file(path, _POINTS_LIMIT)
    data: Any
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        data = _table(raw)
        if data is None:
            raise BadInput(f"{path.name} is not valid JSON ({exc}).", code="not-json") from exc
    try:
        found = _pairs_in(data)
    except (TypeError, ValueError, KeyError, AttributeError, StopIteration):
        found = None
    if found is None:
        raise BadInput(
            f"{path.name} must hold a list of pairs [hx, hy, tx, ty] in image pixels, such as "
            "[[120, 80, 120, 40]].",
            code="points-shape",
            field="points",
        )
    if found and len(found[-1]) == 2:
        raise BadInput(
            f"{path.name} has {2 * len(found) - 1} points, so the last handle lacks its target; add it.",
            code="no-target",
            field="points",
        )
    return [PointPair.from_json(p) for p in found]


_ENDS = (("handle", "target"), ("start", "end"), ("start", "target"), ("from", "to"),
         ("source", "target"), ("source", "destination"))  # fmt: skip


def _table(raw: bytes) -> list[list[float]] | None:
    """Lines of four numbers, with a heading or without."""
    lines = [
        re.split(r"[,;\s]+", t.strip())
        for t in raw.decode("utf-8", "replace").splitlines()
        if t.strip()
    ]
    if lines and not any(re.fullmatch(r"[-+.\d]+", word) for word in lines[0]):
        lines = lines[1:]
    try:
        rows = [[float(word) for word in line] for line in lines]
    except ValueError:
        return None
    return rows if rows and all(len(row) == 4 for row in rows) else None


def _pairs_in(data: Any) -> list[Any] | None:
    """Pairs as lists of numbers; the last one has two where its target is missing."""
    if isinstance(data, dict):
        for name in ("pairs", "points", "arrows", "drags"):
            if name in data:
                return _pairs_in(data[name])
        for one, other in _ENDS:
            if f"{one}s" in data and f"{other}s" in data:
                ends = zip(data[f"{one}s"], data[f"{other}s"], strict=True)
                return [[*_xy(a), *_xy(b)] for a, b in ends]
        if data and all(str(k).isdigit() for k in data):  # DragGAN numbers its points
            return _pairs_in([data[k] for k in sorted(data, key=int)])
        return [_pair_in(data)]
    if not isinstance(data, list):
        return None
    if data and all(
        isinstance(p, list) and len(p) == 2 and not isinstance(p[0], (list, dict)) for p in data
    ):
        return [
            data[i] + (data[i + 1] if i + 1 < len(data) else []) for i in range(0, len(data), 2)
        ]
    if data and all(isinstance(v, (int, float)) for v in data):
        return [data]
    return [_pair_in(item) for item in data]


def _pair_in(item: Any) -> list[Any]:
    if isinstance(item, list):
        if len(item) == 2:
            return [*_xy(item[0]), *_xy(item[1])]
        return item
    if "pair" in item:
        return list(item["pair"])
    one, other = next(ends for ends in _ENDS if ends[0] in item and ends[1] in item)
    return [*_xy(item[one]), *_xy(item[other])]


def _xy(point: Any) -> list[Any]:
    if isinstance(point, dict):
        return [point["x"], point["y"]]
    x, y = point
    return [x, y]


def read_settings() -> Settings:
    """The settings of this installation.

    Raises:
        BadInput: when an environment variable has a bad value.
    """
    return Settings.load()


def read_file(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file that a person named.

    Raises:
        BadInput: when it is missing, no file, or too large.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise BadInput(
                f"{path.name} has {size / 2**20:.0f} MB; at most {most_bytes / 2**20:.0f} MB are "
                "read.",
                code="too-large",
            )
        return path.read_bytes()
    except FileNotFoundError as exc:
        text = f"There is no file {str(path)!r:.200}; check its name and folder."
        raise BadInput(text, code="no-file") from exc
    except IsADirectoryError as exc:
        text = f"{str(path)!r:.200} is a folder; name a file in it."
        raise BadInput(text, code="is-folder") from exc
    except OSError as exc:
        text = f"{str(path)!r:.200} cannot be read ({exc.strerror})."
        raise BadInput(text, code="unreadable") from exc
    except ValueError as exc:  # a NUL byte in the name
        raise BadInput(f"{str(path)!r:.200} is not a file name ({exc}).", code="no-file") from exc
