"""`generate`: pictures from a prompt, ready to be dragged without inversion."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.engine import opened_app, steps
from workbench.cli.parsers import (
    add_config,
    add_model,
    add_run,
    configured,
)
from workbench.cli.requests import write_file
from workbench.core.config import GenerationConfig
from workbench.core.errors import BadInput
from workbench.core.request import EditRequest, GenerateTask, ImageAsset
from workbench.imaging import decode
from workbench.storage.archive import png_metadata


def add_parsers(subparsers: Any) -> None:
    """Add `generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="make pictures from a prompt",
        usage="%(prog)s PROMPT [options]",
        epilog="Example: %(prog)s 'an orange cat, tail up' -o cats --count 2",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shall show")
    parser.add_argument("-o", "--out", type=Path, default=Path(), metavar="FOLDER",
                        help="folder for the pictures, made if need be [default: here]")  # fmt: skip
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="how many, 1 to 16 [default 1]"
    )
    add_model(parser)
    add_run(parser)
    add_config(parser, "generate", GenerationConfig, "generation")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the pictures and write them."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise BadInput(f"{str(args.out)!r:.200} is a file; name a folder with -o.") from exc
    except OSError as exc:
        raise BadInput(
            f"The folder {str(args.out)!r:.200} cannot be made ({exc.strerror}); name another."
        ) from exc
    config = configured(args, "generate", GenerationConfig())
    with opened_app(args) as app:
        model = app.model_ref(args.model or app.settings.model)
        task = GenerateTask(prompt=args.prompt, config=config, model=model, count=args.count)
        with steps(quiet=args.quiet) as (on_step, _):
            made = app.perform("generate", task, on_step=on_step)
        for picture in made["pictures"]:
            path = args.out / f"generated-{picture['config']['seed']}.png"
            write_file(path, _png(app, task, picture))
            picture["file"] = str(path)
    if args.json:
        print(json.dumps(made, indent=1))
        return 0
    if made["notice"]:
        print(made["notice"])
    for picture in made["pictures"]:
        print(picture["file"])
    return 0


def _png(app: App, task: GenerateTask, picture: dict[str, Any]) -> bytes:
    """A made picture with how it was made, so that an edit can start from the sampler's latents."""
    name = f"seed {picture['config']['seed']}"
    request = EditRequest(
        image=ImageAsset(
            id=picture["image"], width=picture["width"], height=picture["height"], name=name
        ),
        pairs=(),
        prompt=task.prompt,
        model=task.model,
        generation=GenerationConfig(**picture["config"]),
    )
    rgb = app.store.image(picture["image"])
    return decode.encode_png(rgb, edit=png_metadata.card_of_request(request))
