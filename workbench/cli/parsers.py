"""What the commands share: a parser whose errors are one sentence, and options from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from workbench.errors import BadInput
from workbench.options import Option, options_of, range_text
from workbench.settings import Settings
from workbench.types import (
    METHODS,
    STRENGTHS,
    DragConfig,
    InversionConfig,
    LoraConfig,
    Point,
    PointPair,
)

T = TypeVar("T")
LORA_PRESETS = {"quick": 40, "standard": 80, "thorough": 200}
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
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence and where the help is."""
        raise BadInput(f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.")


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
    facts = [p for p in (limits, f"default {default:g}" if kind in (int, float)
                         else f"default {default}") if p]  # fmt: skip
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
        help="training steps: " + ", ".join(f"{k} {v}" for k, v in LORA_PRESETS.items()),
    )


def pair(text: str) -> PointPair:
    """Read 'hx,hy:tx,ty'.

    Raises:
        argparse.ArgumentTypeError: saying what a pair looks like.
    """
    try:
        numbers = [[float(v) for v in half.split(",")] for half in text.split(":")]
    except ValueError:
        numbers = []
    good = [len(half) for half in numbers] == [2, 2]
    if not good or not all(math.isfinite(v) for half in numbers for v in half):
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is no pair; write handle and target as x,y:x,y in image pixels, such as "
            "120,80:120,40"
        )
    return PointPair(Point(*numbers[0]), Point(*numbers[1]))


def read_points(path: Path) -> list[PointPair]:
    """Read pairs from JSON: [[hx,hy,tx,ty], ...], or handle and target in turn [[x,y], ...].

    Either may stand under the key "pairs" or "points".

    Raises:
        BadInput: naming the file and what is wrong in it.
    """
    raw = read_file(path, _POINTS_LIMIT)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{path.name} is no JSON ({exc}).") from exc
    if isinstance(data, dict):
        data = data.get("pairs", data.get("points"))
    if not isinstance(data, list) or not all(isinstance(p, list) for p in data):
        raise BadInput(f"{path.name} must hold a list of [hx, hy, tx, ty].")
    if data and all(len(p) == 2 for p in data):
        if len(data) % 2:
            raise BadInput(
                f"{path.name} has {len(data)} points, so the last handle lacks its target; add it."
            )
        data = [[*a, *b] for a, b in zip(data[::2], data[1::2], strict=True)]
    return [PointPair.from_json(p) for p in data]


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
                "read."
            )
        return path.read_bytes()
    except OSError as exc:
        raise BadInput(f"{str(path)!r:.200} cannot be read ({exc.strerror}).") from exc
    except ValueError as exc:  # a NUL byte in the name
        raise BadInput(f"{str(path)!r:.200} is no file name ({exc}).") from exc
