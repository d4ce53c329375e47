"""`edit`, `train`, `generate`: one picture dragged, prepared for drags, or made from a prompt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.app import App
from workbench.cli.engine import opened_app, steps
from workbench.cli.parsers import (
    CONFIGS,
    add_config,
    add_dragging,
    add_method,
    add_model,
    add_run,
    configured,
    pair,
    read_points,
)
from workbench.cli.requests import (
    add_common,
    lora_ref,
    make_request,
    read_generation,
    read_mask,
    read_parent,
    read_picture,
    told,
    write_file,
)
from workbench.core.config import GenerationConfig
from workbench.core.errors import BadInput
from workbench.core.record import EditRecord, StopReason, left_of
from workbench.core.request import EditRequest, GenerateTask, ImageAsset, PointPair, TrainTask
from workbench.imaging import decode
from workbench.imaging.headers import FORMATS
from workbench.storage.archive import page
from workbench.storage.archive.page import result_png


def _add_edit_parser(subparsers: Any) -> None:
    """Add `edit`."""
    parser = subparsers.add_parser(
        "edit",
        help="drag a picture",
        usage="%(prog)s PICTURE --pair X,Y:X,Y [--pair ...] [options]",
        epilog="Example: %(prog)s robot.png --prompt 'a grey robot' --pair 226,149:218,93 -o up.png",
        description="Drag what lies under each handle to its target. Coordinates are image pixels, x "
        "to the right, y down, (0, 0) is the top-left pixel. Writes the result and, beside it, a "
        "strip: the source with mask and arrows, and the result.",
    )
    add_picture_and_points(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="PNG to write [default: <name of the picture>-dragged.png, here]",
    )
    parser.add_argument(
        "--no-card", action="store_true", help="do not write the settings into the PNG"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not continue an earlier run of the same drag"
    )
    add_common(parser)
    add_dragging(parser)
    parser.set_defaults(run=run)


def add_picture_and_points(parser: argparse.ArgumentParser) -> None:
    """Add what says which drag: picture, arrows, and where it may change."""
    parser.add_argument(
        "picture", type=Path, metavar="PICTURE", help=f"{FORMATS}; HEIC with pillow-heif"
    )
    parser.add_argument(
        "--pair",
        action="append",
        type=pair,
        default=[],
        metavar="X,Y:X,Y",
        help="handle and target; may be repeated. Behind them, :grow=-1..1 (how much the handle "
        "holds) and :move=auto|shift|turn|stretch",
    )
    parser.add_argument("--points", type=Path, metavar="FILE", help="pairs as JSON [[x,y,x,y],...]")
    area = parser.add_mutually_exclusive_group()
    area.add_argument("--mask", type=Path, metavar="FILE", help="painted = may change")
    area.add_argument(
        "--auto-mask", action="store_true", help="propose a mask from the arrows [the default]"
    )
    parser.add_argument(
        "--invert-mask", action="store_true", help="painted = stays, the other way round"
    )
    area.add_argument("--whole", action="store_true", help="the whole picture may change")


def run(args: argparse.Namespace) -> int:
    """Do the edit and write its pictures."""
    out = args.out or Path.cwd() / f"{args.picture.stem}-dragged.png"
    check_out(out, args.picture)
    pairs = read_pairs(args)
    with opened_app(args) as app:
        record, notices = edit_picture(app, args, pairs)
        written = write_result(app, record, out, with_card=not args.no_card)
        found = [f.to_json() for f in app.check(record.request)]
    if args.json:
        data = {
            **record.to_json(),
            "files": {k: str(v) for k, v in written.items()},
            "findings": found,
        }
        print(json.dumps(data, indent=1))
    else:
        for line in (*notices, *summary(record)):
            print(line)
        print(f"{written['result']} and {written['strip'].name}")
    return 0


def read_pairs(args: argparse.Namespace) -> list[PointPair]:
    """The arrows of the command line and of the file that it names.

    Raises:
        BadInput: when there is none, or the file cannot be used.
    """
    pairs = [*args.pair, *(read_points(args.points) if args.points else [])]
    if not pairs:
        raise BadInput(
            "There is nothing to move; give at least one --pair X,Y:X,Y.", code="no-arrow"
        )
    return pairs


def check_out(out: Path, picture: Path) -> None:
    """Refuse an output that would destroy the input or is not a PNG.

    Raises:
        BadInput: saying so.
    """
    if out.suffix.lower() != ".png":
        raise BadInput(
            f"The picture is written as PNG, but {out.name!r:.80} does not end in .png; "
            "choose another name.",
            code="bad-name",
        )
    if out.exists() and picture.exists() and out.samefile(picture):
        raise BadInput(
            "The result would overwrite the picture; choose another name with -o.", code="overwrite"
        )
    if not out.parent.is_dir():
        raise BadInput(
            f"The folder {str(out.parent)!r:.200} does not exist; make it first.", code="no-folder"
        )


def edit_picture(
    app: App, args: argparse.Namespace, pairs: list[PointPair]
) -> tuple[EditRecord, list[str]]:
    """Read the files, run the edit with progress; the record and what was noticed on the way.

    Raises:
        BadInput: when picture, mask, pairs or options cannot be used.
        WorkbenchError: whatever the work raises.
    """
    request, notices = read_request(app, args, pairs)
    with steps(quiet=args.quiet) as (on_step, _):
        from workbench.jobs.run_job import edit

        return edit(app, request, on_step=on_step, fresh=args.fresh), notices


def read_request(
    app: App, args: argparse.Namespace, pairs: list[PointPair]
) -> tuple[EditRequest, list[str]]:
    """Read the files; the request and what was noticed on the way.

    Raises:
        BadInput: when picture, mask, pairs or options cannot be used.
    """
    if not pairs:
        raise BadInput(
            "There is nothing to move; give at least one --pair X,Y:X,Y.", code="no-arrow"
        )
    picture = read_picture(app, args.picture)
    image, notices = picture.asset, list(picture.notices)
    wanted: str | Path = args.mask or ("whole" if args.whole else "auto")
    made, sentence = read_generation(app, picture, args)
    notices += [sentence] if sentence else []
    made["parent"] = read_parent(app, picture)
    if made["parent"] is not None:
        notices.append(f"It continues the edit {made['parent']}.")
    # says what is wrong before a mask is looked for
    make_request(app, args, image=image, mask=None, pairs=pairs, **made)
    mask, more = read_mask(app, image, picture.rgb, pairs, wanted, invert=args.invert_mask)
    request = make_request(app, args, image=image, mask=mask, pairs=pairs, **made)
    return request, [*notices, *more, *told(app, request, strict=args.strict)]


def write_result(app: App, record: EditRecord, out: Path, *, with_card: bool) -> dict[str, Path]:
    """Write the result and the strip beside it; the paths by what they are.

    Raises:
        StoreError: when the disk refuses.
    """
    assert record.result is not None
    beside = out.with_name(f"{out.stem}-strip.png")
    write_file(out, result_png(record, app.store, with_card=with_card))
    if record.result.strip is not None:
        write_file(beside, app.store.blob(record.result.strip))
    return {"result": out, "strip": beside}


def summary(record: EditRecord) -> list[str]:
    """A summary of the edit in a few lines."""
    result = record.result
    assert result is not None
    lines = [*result.notices, StopReason[result.stop].value]
    pairs = record.request.pairs
    if result.distances:
        left = ", ".join(
            f"{i}: {d:.1f} of {p.length:.1f}"
            for i, (d, p) in enumerate(zip(left_of(pairs, result), pairs, strict=True), 1)
        )
        lines.append(f"Left to go (px): {left}.")
    if result.knows:
        k = result.knows
        lines.append(
            f"The model knows this picture {k['level']} (round trip {k['psnr']:.1f} dB, noise error "
            f"{k['noise']:.2f})."
        )
    if result.choice:
        lines.append(f"Delivered: {result.choice['result']} ({result.choice['why']}).")
    spent = ", ".join(f"{k} {v:.1f}" for k, v in result.seconds.items() if v >= 0.05)
    cached = f"; from the cache: {', '.join(result.cached)}" if result.cached else ""
    lines.append(f"{result.iterations} steps; seconds: {spent}{cached}.")
    lines.append(f"Edit {record.id}")
    return lines


def _add_train_parser(subparsers: Any) -> None:
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
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    """Train, and write what was asked for."""
    if args.reconstruction:
        check_out(args.reconstruction, args.picture)
    if args.out and args.out.suffix.lower() != ".safetensors":
        raise BadInput(
            f"A LoRA is a .safetensors file; {args.out.name!r:.80} is not.", code="bad-name"
        )
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
                raise BadInput(
                    "No LoRA was trained (0 steps), so there is none to write.", code="no-lora"
                )
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


def _add_generate_parser(subparsers: Any) -> None:
    """Add `generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="make pictures from a prompt",
        usage="%(prog)s PROMPT [options]",
        epilog="Example: %(prog)s 'an orange cat, tail up' -o cats --count 2",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture should show")
    parser.add_argument("-o", "--out", type=Path, default=Path(), metavar="FOLDER",
                        help="folder for the pictures, made if need be [default: here]")  # fmt: skip
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="how many, 1 to 16 [default 1]"
    )
    add_model(parser)
    add_run(parser)
    add_config(parser, "generate", GenerationConfig, "generation")
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    """Make the pictures and write them."""
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise BadInput(
            f"{str(args.out)!r:.200} is a file; name a folder with -o.", code="no-folder"
        ) from exc
    except OSError as exc:
        raise BadInput(
            f"The folder {str(args.out)!r:.200} cannot be made ({exc.strerror}); name another.",
            code="not-written",
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
    return decode.encode_png(rgb, edit=page.card_of_request(request))


def add_parsers(subparsers: Any) -> None:
    """Add `edit`, `train` and `generate`."""
    _add_edit_parser(subparsers)
    _add_train_parser(subparsers)
    _add_generate_parser(subparsers)
