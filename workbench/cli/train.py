"""`train`: fine-tune a picture's LoRA and invert the picture, so that drags begin at once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.cli.edit import check_out
from workbench.cli.engine import opened_app, steps
from workbench.cli.parsers import (
    CONFIGS,
    add_config,
    add_method,
    add_model,
    add_run,
)
from workbench.cli.requests import (
    add_common,
    lora_ref,
    make_request,
    read_mask,
    read_picture,
    write_file,
)
from workbench.core.errors import BadInput
from workbench.core.request import TrainTask
from workbench.imaging import decode
from workbench.imaging.headers import FORMATS


def add_parsers(subparsers: Any) -> None:
    """Add `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a picture's LoRA and invert it",
        usage="%(prog)s PICTURE [options]",
        epilog="Example: %(prog)s robot.png --prompt 'a grey robot' --lora-preset thorough --name robot",
        description="Train a LoRA on one picture and invert the picture. What was computed is kept in "
        "the cache, and the same picture, prompt and options find it there.",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE", help=FORMATS)
    parser.add_argument(
        "--mask", type=Path, metavar="FILE", help="decides the crop of a big picture"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="also write the LoRA here")
    parser.add_argument("--name", default="", help="keep the LoRA in the library under this name")
    parser.add_argument("--from", dest="start", metavar="NAME|FILE", help="go on from this LoRA")
    parser.add_argument(
        "--reconstruction", type=Path, metavar="PNG", help="write the inverted picture, denoised"
    )
    add_common(parser)
    add_model(parser)
    add_method(parser)
    add_run(parser)
    for prefix, cls, title in CONFIGS[:2]:
        add_config(parser, prefix, cls, title)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, and write what was asked for."""
    if args.reconstruction:
        check_out(args.reconstruction, args.picture)
    if args.out and args.out.suffix.lower() != ".safetensors":
        raise BadInput(f"A LoRA is a .safetensors file; {args.out.name!r:.80} is not.")
    with opened_app(args) as app:
        if args.name:
            app.loras.path(args.name)  # an impossible name is refused before minutes are spent
        picture = read_picture(app, args.picture)
        image, notices = picture.asset, picture.notices
        mask, more = read_mask(app, image, picture.rgb, (), args.mask or "whole")
        request = make_request(app, args, image=image, mask=mask, pairs=())
        task = TrainTask(request=request, start=lora_ref(app, args.start, 1.0), name=args.name)
        with steps(quiet=args.quiet) as (on_step, _):
            made = app.perform("train", task, on_step=on_step)
        if args.out:
            lora = made["lora_file"]
            raw = app.store.blob(lora["id"]) if lora else app.cache.get(made["lora"] or "")
            if raw is None:
                raise BadInput("No LoRA was trained (0 steps), so there is none to write.")
            write_file(args.out, raw)
        if args.reconstruction:
            write_file(
                args.reconstruction, decode.encode_png(app.store.image(made["reconstruction"]))
            )
    if args.json:
        print(json.dumps({**made, "notices": [*notices, *more, *made["notices"]]}, indent=1))
        return 0
    for line in (*notices, *more, *made["notices"]):
        print(line)
    losses = made["losses"]
    if losses:
        tenth = max(1, len(losses) // 10)
        print(
            f"Trained {len(losses)} steps; loss {sum(losses[:tenth]) / tenth:.4f} at first, "
            f"{sum(losses[-tenth:]) / tenth:.4f} at last."
        )
    if made["cached"]:
        print(f"From the cache: {', '.join(made['cached'])}.")
    print(f"Inverted and denoised again, the picture comes back at {made['psnr']:.1f} dB.")
    return 0
