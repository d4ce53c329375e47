"""Install the requirements into this Python's environment and say what is going on, all the while.

    .venv/bin/python tools/install.py requirements.txt

A line comes with each step of pip, and at least every five seconds; the last one says how many files were
fetched and how large they were, in pip's own words. Standard library only.

torch goes first, from the place that has the build for this machine: PyPI's for Linux brings CUDA, of
which a machine without an NVIDIA GPU has no use, so there PyTorch's own index of CPU builds is asked
first, and PyPI only when that cannot be reached. Where pip is set up to take packages from elsewhere (a
mirror, a folder), that is where torch comes from, too. All else comes as requirements.lock has it: a file
whose hash is not in there is refused.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
OWN_SOURCES = ("index-url", "extra-index-url", "find-links", "no-index")
EVERY = 5.0  # s between two signs of life
_FETCH = re.compile(r"^\s*Downloading (\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")
_UNITS = {"bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


class Told:
    """What pip does, told on one line each, and what it fetched."""

    def __init__(self) -> None:
        """Nothing was fetched yet."""
        self.files = 0
        self.bytes = 0.0
        self.now = "pip starts"
        self._said = self._begun = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line at once."""
        self._said = time.monotonic()
        print(text, flush=True)

    def hear(self, line: str) -> None:
        """Take note of a line of pip's."""
        word = line.split(maxsplit=2)
        fetched = _FETCH.match(line)
        if fetched:
            name, size, unit = fetched.groups()
            self.now = f"fetching {name} ({size} {unit})"
            if not name.endswith(".metadata"):
                self.files += 1
                self.bytes += float(size) * _UNITS[unit]
                if unit in ("MB", "GB"):
                    self.say(f"  {self.now}")
        elif word[:1] == ["Collecting"]:
            self.now = f"looking for {word[1]}"
        elif word[:2] == ["Installing", "collected"]:
            self.now = f"unpacking {len(line.split(','))} packages"
            self.say(f"  {self.now}")
        elif word[:1] == ["Processing"]:
            self.now = f"taking {Path(word[1]).name}, which is on this machine"
            self.say(f"  {self.now}")
        elif word[:1] == ["Building"]:
            self.now = line.strip()

    def alive(self) -> None:
        """Say that it goes on, when nothing was said for a while."""
        if time.monotonic() - self._said >= EVERY:
            self.say(f"  {self.now} ... {time.monotonic() - self._begun:.0f} s")

    def total(self) -> str:
        """What was fetched, in how long."""
        took = time.monotonic() - self._begun
        return f"{self.files} files fetched, {self.bytes / 1e6:.0f} MB, {took:.0f} s."


def pip(told: Told, *arguments: str) -> tuple[int, list[str]]:
    """Run pip's install; its exit code and everything it printed."""
    quiet = ("--disable-pip-version-check", "--progress-bar", "off")
    return module(told, "pip", "install", *quiet, *arguments)


def module(told: Told, *command: str) -> tuple[int, list[str]]:
    """Run `python -m command`; its exit code and everything it printed."""
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, told, lines), daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(0.5)
            told.alive()
    return process.returncode, lines


def _read(source: object, told: Told, lines: list[str]) -> None:
    for line in source:  # type: ignore[attr-defined]
        lines.append(line)
        told.hear(line)


def has_nvidia() -> bool:
    """Whether an NVIDIA driver is on this machine (of any kind: WSL has no device files)."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def own_sources() -> list[str]:
    """Where pip was told to take packages from, other than PyPI: names of its settings."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    names = {line.partition("=")[0].rpartition(".")[2] for line in found.stdout.splitlines()}
    names |= {n for n in OWN_SOURCES if os.environ.get(f"PIP_{n.upper().replace('-', '_')}")}
    return [n for n in OWN_SOURCES if n in names]


def torch_sources(system: str, *, nvidia: bool, own: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What to try for torch, in order: (what to say, pip's arguments)."""
    plain: tuple[str, list[str]]
    if own:
        return [(f"torch, from where pip is set up to look ({', '.join(own)})", [])]
    if system != "Linux":
        return [("torch, from PyPI", [])]
    if nvidia:
        return [
            ("torch for the NVIDIA GPU of this machine, from PyPI: with CUDA, some gigabytes", [])
        ]
    plain = ("torch from PyPI instead: with CUDA, some gigabytes that nothing here will use", [])
    quick = ["--index-url", CPU_BUILDS, "--retries", "0", "--timeout", "15"]
    return [
        ("torch for the CPU (there is no NVIDIA driver), from PyTorch's own index", quick),
        plain,
    ]


def pinned(path: Path, name: str) -> str | None:
    """`name==version` as a requirements file has it."""
    found = re.search(rf"^{name}==\S+", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[0] if found else None


def here(requirement: str) -> bool:
    """Whether `name==version` is installed, in whichever build (2.13.0+cpu is 2.13.0)."""
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name).partition("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def main(arguments: Sequence[str]) -> int:
    """Install each of the given requirements files; the exit code."""
    told = Told()
    told.say(f"Installing into {sys.prefix} (once; later starts skip this).")
    if (
        importlib.util.find_spec("pip") is None
    ):  # the Makefile leaves it out, since it is silent and slow
        told.say("- pip")
        told.now = "unpacking pip"
        code, lines = module(told, "ensurepip", "--default-pip")
        if code:
            return failed(lines)
    for name in arguments:
        path = Path(name)
        torch = pinned(path, "torch")
        if torch is not None and not here(torch):
            sources = torch_sources(platform.system(), nvidia=has_nvidia(), own=own_sources())
            for what, more in sources:
                told.say(f"- {what}")
                code, lines = pip(told, *more, torch)
                if code == 0:
                    break
            else:
                return failed(lines)
        told.say(f"- {path}")
        lock = path.with_suffix(".lock")
        if lock.exists():  # every file must have a hash that was written down
            code, lines = pip(told, "--no-deps", "--require-hashes", "-r", str(lock))
        else:
            code, lines = pip(told, "-r", str(path))
        if code:
            return failed(lines)
    told.say(f"Installed. {told.total()}")
    return 0


def failed(lines: Sequence[str]) -> int:
    """Show the end of what pip said."""
    sys.stdout.writelines(lines[-20:])
    print(
        "The installation failed; pip's reasons are above. Run the command again to go on from here."
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
