"""Parsing, progress lines and stopping: nothing here loads a model."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from patience import HANG, until

from workbench.cli import build_parser, execute, main
from workbench.cli.engine import Progress, stopping
from workbench.cli.parsers import (
    CONFIGS,
    option_name,
    pair,
    read_points,
)
from workbench.core.config import GenerationConfig
from workbench.core.errors import BadInput, held
from workbench.core.options import options_of
from workbench.core.record import StepInfo
from workbench.core.request import Point, PointPair
from workbench.jobs import CancelToken

REPO = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    parser = build_parser()
    (action,) = [a for a in parser._actions if a.dest == "command"]
    assert action.choices is not None
    return list(action.choices)


def test_the_commands_that_are_promised() -> None:
    assert {"edit", "train", "generate", "batch", "sweep", "models", "cache", "history", "replay", "doctor",
            "demo"} <= set(commands())  # fmt: skip


def test_help_of_everything_without_torch() -> None:
    code = (
        "import sys\nfrom workbench.cli import main\n"
        f"codes = [main([c, '--help']) for c in {commands()!r}] + [main(['--help'])]\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)\n"
        "sys.exit(0 if not any(codes) and not heavy else 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_torchs_threads_spin_shortly_unless_told_otherwise(own: dict[str, str], found: str) -> None:
    """The count is there before torch is: its OpenMP reads it once, when it is loaded."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names} | own
    code = (
        "import os, sys, workbench; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [found, "False"]


def test_every_command_and_argument_is_described() -> None:
    def look(parser: argparse.ArgumentParser, path: str) -> None:
        assert parser.description, path
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    look(inner, f"{path} {name}")
            else:
                assert action.help, f"{path} {action.option_strings or action.dest}"

    look(build_parser(), "workbench")


def test_every_option_is_in_help_with_default_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for prefix, cls, _ in CONFIGS:
        for name, (kind, default, opt) in options_of(cls).items():
            if (prefix, name) == ("drag", "method"):
                continue
            flag = f"--{prefix}-{name.replace('_', '-')}"
            assert flag in text
            shown = f"{default:g}" if kind in (int, float) else str(default)
            at = text.index(opt.help[:30])
            assert f"default {shown}]" in text[at : at + 260], flag
    assert "--n-pix-steps" in text


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("edit x.png --pair 1,2:3", "--pair"),
        ("edit x.png --pair a,b:c,d", "--pair"),
        ("edit x.png --pair 1,2:nan,3", "--pair"),
        ("edit x.png --mask m.png --whole", "--whole"),
        ("edit x.png --drag-steps many", "--drag-steps/--n-pix-steps"),
        ("edit x.png --method magic", "--method"),
        ("edit", ""),
        ("edit x.png --drag-ste 3", "--drag-ste"),
        ("edit x.png --whole more", "more"),
        ("edit x.png --prompt", "--prompt"),
        ("edit x.png --crop=yes", "--crop/--no-crop"),
        ("doctor --dep", "--dep"),
        ("nonsense", "COMMAND"),
        ("history exprt", "ACTION"),
        ("", ""),
        ("history export", ""),
        ("cache clear --older-than x", "--older-than"),
    ],
)
def test_bad_arguments_are_one_sentence(
    given: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        execute(given.split())
    assert (caught.value.code, caught.value.field) == ("arguments", field)
    assert main(given.split()) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "--help'" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("histroy", "history"),
        ("history exprt", "export"),
        ("edit x.png --drag-ste 3", "--drag-steps"),
        ("edit x.png --method aut", "auto"),
    ],
)
def test_what_was_probably_meant_is_named(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given.split()) == 2
    assert meant in capsys.readouterr().err


def test_a_field_is_named_as_its_option() -> None:
    with pytest.raises(BadInput) as caught:
        GenerationConfig(steps=1)
    assert caught.value.field == "generation.steps"
    assert option_name("generation.steps") == "--generate-steps"
    assert option_name("lora.batch_size") == "--lora-batch-size"
    assert option_name("drag.method") == "--method"
    assert caught.value.with_field("--generate-steps").startswith("--generate-steps is 1;")
    again = pickle.loads(pickle.dumps(caught.value))  # travels to and from worker processes
    assert (str(again), again.code, again.values) == (
        str(caught.value),
        "out-of-range",
        {"value": 1},
    )


def test_pair() -> None:
    assert pair("120,80:120.5,-0.4") == PointPair(Point(120, 80), Point(120.5, -0.4))


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        {"pairs": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"points": [[1, 2], [3, 4], [5, 6], [7, 8]]},
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        [{"handle": [1, 2], "target": [3, 4]}, {"start": [5, 6], "end": {"x": 7, "y": 8}}],
        {"arrows": [{"pair": [1, 2, 3, 4]}, {"from": [5, 6], "to": [7, 8]}]},
        {"handles": [[1, 2], [5, 6]], "targets": [[3, 4], [7, 8]]},
        {
            "points": {
                "0": {"start": [1, 2], "target": [3, 4]},
                "1": {"start": [5, 6], "target": [7, 8]},
            }
        },
    ],
)
def test_points_files(data: object, tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    file.write_text(json.dumps(data))
    assert [p.to_json() for p in read_points(file)] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    "text", ["1,2,3,4\n5,6,7,8\n", "hx;hy;tx;ty\n1;2;3;4\n5;6;7;8", "1 2 3 4\n\n5 6 7 8"]
)
def test_points_tables(text: str, tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    assert [p.to_json() for p in read_points(file)] == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"x": 1}', "points-shape"),
        ('{"handles": [[1, 2]], "targets": []}', "points-shape"),
        ('[{"handle": [1, 2]}]', "points-shape"),
        ("[null]", "points-shape"),
        ("{", "not-json"),
        ("3", "points-shape"),
        ("[[1,2],[3,4],[5,6]]", "no-target"),
        ("[[1,2,3]]", "not-a-pair"),
        ('[[1,2,3,"x"]]', "not-finite"),
        ("[" * 100_000, "not-json"),
    ],
)
def test_fault_14_bad_points_files(text: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_points(file)
    assert caught.value.code == code


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_step_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "120")
    progress = Progress(out, live=True, clock=clock)
    for step in range(11):
        progress(StepInfo(stage="drag", step=step, total=80, loss=0.5, distances=(12.4, 3.0)))
        clock.now += 2.0
    line = out.getvalue().split("\r")[-1]
    for part in ("Dragging", "10/80", "loss 0.5", "to go 12 3 px", "2.0 s each", "2:20 min left"):
        assert part in line
    progress(StepInfo(stage="denoise", step=1, total=1, cached=True))
    assert "from the cache" in out.getvalue().split("\n")[-2]


def test_progress_says_what_is_waited_for() -> None:
    clock, out = Clock(), io.StringIO()
    clock.now = 100.0
    progress = Progress(out, live=False, clock=clock)
    for _ in range(130):
        progress(StepInfo(stage="lora", step=0, total=1, waiting=True))
        clock.now += 0.1
    progress(StepInfo(stage="lora", step=1, total=1, cached=True))
    first, second, last = out.getvalue().splitlines()
    assert "another run is at the same; waiting for it, 0 s" in first
    assert "waiting for it, 10 s" in second
    assert last.endswith("from the cache")


def test_progress_goes_on_where_nobody_reads_it_any_more() -> None:
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(BrokenPipeError), os.fdopen(write, "w") as stream:
        progress = Progress(stream, live=True)
        for step in range(5):
            progress(StepInfo(stage="drag", step=step, total=4))
        progress.close()


def test_progress_is_sparse_where_there_is_no_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(out, live=False, clock=clock)
    for step in range(101):
        progress(StepInfo(stage="lora", step=step, total=100))
        clock.now += 0.5
    lines = out.getvalue().splitlines()
    assert 3 <= len(lines) <= 7
    assert "100/100" in lines[-1]
    quiet = io.StringIO()
    Progress(quiet, quiet=True)(StepInfo(stage="lora", step=1, total=1))
    assert quiet.getvalue() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_stops(number: signal.Signals) -> None:
    token = CancelToken()
    before = signal.getsignal(number)
    with stopping(token, patience=60):
        assert not token.cancelled
        os.kill(os.getpid(), number)
        assert token.wait(HANG)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_stops_at_once(number: signal.Signals) -> None:
    def impatient() -> None:
        with stopping(CancelToken(), patience=60):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            time.sleep(HANG)

    with pytest.raises(KeyboardInterrupt):
        impatient()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_cannot_break_restoring(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with stopping(CancelToken(), patience=60):
            try:
                os.kill(os.getpid(), number)
            finally:
                with held():
                    with held():
                        os.kill(os.getpid(), number)
                        done.append("inner")
                    done.append("outer")
            done.append("more work")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


def test_a_signal_that_is_not_heard_stops_all_the_same() -> None:
    def deaf() -> None:
        with stopping(CancelToken(), patience=0.1):
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: False)

    with pytest.raises(KeyboardInterrupt):
        deaf()


def test_stopping_in_another_thread_does_nothing() -> None:
    ran = []

    def work() -> None:
        with stopping(CancelToken()):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
