"""Two servers and the command line on one cache, killed at random moments: `make siege`.

python tools/siege.py [--minutes 10] [--every 15]

Sessions on both servers and a loop of `python -m workbench edit` make edits of a tiny model in one
history. Every `--every` seconds on average one of the three is killed by SIGKILL and started again.
At the end each edit that was acknowledged (the page showed its result; the command printed its id) must be
there and whole, each one that was ever seen under way must be listed, as done or as interrupted, and
`history verify` must find nothing. Exit code 1 when something falls short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from soak import REPO, Tab, picture, server_command, start_server, wait_for

from workbench.core.errors import WorkbenchError
from workbench.core.record import JobState
from workbench.storage.history import Store
from workbench.storage.history.folder import verify

FOLLOW = 180.0  # s that a job may take


class Siege:
    """The processes, and what was acknowledged."""

    def __init__(self, folder: Path, ports: tuple[int, ...], chance: random.Random) -> None:
        """Start the servers."""
        self.folder, self.ports, self.chance = folder, ports, chance
        self.over = threading.Event()
        self.acknowledged: dict[str, str] = {}  # edit -> who said so
        self.under_way: set[str] = set()
        self.killed: Counter[str] = Counter()
        self.env = server_command(folder)[1]
        self.store = Store(folder / "cache" / "history")
        self.servers = {port: start_server(folder, port) for port in ports}
        self.commands: dict[int, subprocess.Popen[str]] = {}

    def session(self, port: int, number: int) -> None:
        """Somebody who uploads, draws, runs, and comes back when the server is gone."""
        chance = random.Random(number)  # noqa: S311
        while not self.over.is_set():
            with contextlib.suppress(Exception), contextlib.closing(Tab(port)) as tab:
                tab.run()
                tab.upload(picture(chance), "p.png")
                while not self.over.is_set():
                    tab.draw(chance)
                    tab.press("run")
                    end = time.monotonic() + FOLLOW
                    while tab.button("cancel_drag") is not None and time.monotonic() < end:
                        self.over.wait(0.7)
                        tab.poll()
                    if found := re.search(r"edit=(\w+)", tab.query):
                        self.acknowledged.setdefault(found[1], f"server {port}")
            self.over.wait(2.0)

    def command(self, number: int) -> None:
        """`python -m workbench edit`, over and over."""
        chance = random.Random(100 + number)  # noqa: S311
        while not self.over.is_set():
            path = self.folder / f"c{number}.png"
            path.write_bytes(picture(chance))
            x = chance.randint(12, 30)
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "workbench", "edit", str(path), "--pair", f"{x},20:{x + 9},24",
                 "--model", "micro", "--json", "--quiet", "-o", str(self.folder / f"c{number}-out.png")],
                cwd=REPO, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self.commands[number] = process
            said, _ = process.communicate()
            if process.returncode == 0:
                self.acknowledged[json.loads(said)["id"]] = "command line"

    def kill_one(self) -> None:
        """SIGKILL one of them; a server is started again."""
        what = self.chance.choice([*self.servers, "command"])
        self.killed[str(what)] += 1
        if isinstance(what, int):
            self.servers[what].send_signal(signal.SIGKILL)
            self.servers[what].wait()
            self.servers[what] = start_server(self.folder, what)
        else:
            for process in list(self.commands.values()):
                process.send_signal(signal.SIGKILL)

    def look(self) -> None:
        """Note what is under way."""
        with contextlib.suppress(WorkbenchError, OSError):
            self.under_way |= {str(getattr(p, "id", p)) for p in self.store.pending()}

    def end(self) -> list[str]:
        """Kill what is left, recover as a start does, and judge."""
        self.over.set()
        for process in (*self.servers.values(), *self.commands.values()):
            process.kill()
            process.wait()
        self.store.recover()
        records = {r.id: r for r in self.store.records(binned=None)}
        short = []
        for name, who in self.acknowledged.items():
            record = records.get(name)
            if record is None or record.status is not JobState.DONE or record.result is None:
                short.append(f"{name}, acknowledged by {who}, is {record and record.status}")
            else:
                self.store.image(record.result.image)
        short += [f"{n} was under way and is not listed" for n in self.under_way - records.keys()]
        short += [f"{n} is still under way" for n in self.store.pending()]
        short += [f"{u} cannot be read" for u in self.store.unreadable()]
        report = verify(self.store)
        if not report.ok:
            short.append(f"history verify: {report}")
        states = Counter(r.status.value for r in records.values())
        by = Counter(self.acknowledged.values())
        print(f"{sum(self.killed.values())} kills: {dict(self.killed)}")
        print(f"{len(self.acknowledged)} edits acknowledged: {dict(by)}; listed: {dict(states)}")
        if not self.acknowledged or not sum(self.killed.values()):
            short.append("nothing was tried: no edit was acknowledged, or nothing was killed")
        self.store.close()
        return short


def main(arguments: list[str]) -> int:
    """Run it; 1 when something fell short."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two kills")
    parser.add_argument("--port", type=int, default=8702, help="of the first server")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chance = random.Random(told.seed)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="siege-", ignore_cleanup_errors=True) as name:
        siege = Siege(Path(name), (told.port, told.port + 1), chance)
        for port in siege.ports:
            wait_for(siege.servers[port], port)
        people = [
            threading.Thread(target=siege.session, args=(port, n), daemon=True)
            for n, port in enumerate(siege.ports * 2)
        ]
        people.append(threading.Thread(target=siege.command, args=(0,), daemon=True))
        for one in people:
            one.start()
        end = time.monotonic() + 60 * told.minutes
        following = time.monotonic() + 2 * told.every
        while time.monotonic() < end:
            siege.look()
            time.sleep(0.5)
            if time.monotonic() > following:
                siege.kill_one()
                following = time.monotonic() + chance.expovariate(1 / told.every)
        short = siege.end()
    for text in short[:20]:
        print(f"  X  {text}")
    print("ok" if not short else f"{len(short)} things fell short")
    return int(bool(short))


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main(sys.argv[1:]))
