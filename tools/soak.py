"""Twenty people on one server for an hour: memory, file handles, threads and jobs, judged at the end.

python tools/soak.py [--minutes 60] [--sessions 20] [--think 8]

Each person is a real session: a page fetched over HTTP, Streamlit's WebSocket, files sent as a browser
sends them. They open pages, upload, paint, draw, run drafts of a tiny model, train and cancel, close
the tab and come back, with `--think` seconds on average between two moves. Server and people are nice
19 and speak over loopback only. Exit code 1 when something failed on a page, in the log or in the
history, or when handles, threads or memory grew beyond what the edits made explain.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
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
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402
from streamlit.proto.BackMsg_pb2 import BackMsg  # noqa: E402
from streamlit.proto.ClientState_pb2 import ClientState  # noqa: E402
from streamlit.proto.Common_pb2 import FileURLsRequest  # noqa: E402
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from workbench.core.record import JobState  # noqa: E402
from workbench.storage.history import Store  # noqa: E402
from workbench.storage.history.folder import verify  # noqa: E402
from workbench.ui.shell.forms import say  # noqa: E402

PATIENCE = 120.0  # s that a script's run may take on a machine that others use
AFTER = 150.0  # s after the last tab was closed: Streamlit keeps a closed session for 120
MEMORY = 64.0  # MB that the second half may add beside what its edits explain
PER_EDIT = 0.1  # MB: a record and its place in the lists
MICRO = REPO / "tests" / "data" / "reference" / "micro_sd"


class Tab:
    """One browser tab: what it shows, and the moves of a person in it."""

    def __init__(self, port: int) -> None:
        """Fetch the page and open its socket."""
        self.port = port
        http_ = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        http_.request("GET", "/_stcore/health")  # sets the cookie that uploads need
        answer = http_.getresponse()
        answer.read()
        sent = ";".join(answer.headers.get_all("set-cookie") or [])
        found = re.search(r"_streamlit_xsrf=([^;]*)", sent)
        self.token = found[1].strip('"') if found else ""
        http_.close()
        self.headers = {"Cookie": f"_streamlit_xsrf={self.token}"}
        self.open = contextlib.ExitStack()
        self.socket = self.open.enter_context(connect(
            f"ws://127.0.0.1:{port}/_stcore/stream",
            subprotocols=["streamlit", self.token],  # type: ignore[list-item]
            origin=f"http://127.0.0.1:{port}",  # type: ignore[arg-type]
            additional_headers=self.headers, max_size=None, open_timeout=PATIENCE,
            close_timeout=5, compression=None,
        ))  # fmt: skip
        self.page = self.query = self.session = ""
        self.shown: dict[tuple[int, ...], Any] = {}  # place on the page -> element
        self.values: dict[str, tuple[str, Any]] = {}  # widget -> (kind of value, value)
        self.polls: set[str] = set()  # fragments that ask to be run again
        self.number, self.name = 0, uuid.uuid4().hex[:8]

    def close(self) -> None:
        """As closing the tab."""
        self.open.close()

    # --- what a browser does --------------------------------------------------------------------

    def run(self, press: str = "", *, fragment: str = "", path: str | None = None) -> None:
        """Run the page's script, with a button pressed, and take in what it shows."""
        if path is not None:
            self.page = ""
            self.values.clear()
        state = ClientState(
            query_string=self.query, page_script_hash=self.page, page_name=path or "",
            fragment_id=fragment, is_auto_rerun=bool(fragment),
        )  # fmt: skip
        for name, (kind, value) in self.values.items():
            widget = state.widget_states.widgets.add(id=name)
            if kind == "files":
                widget.file_uploader_state_value.uploaded_file_info.add(**value)
            else:
                setattr(widget, kind, value)
        if press:
            state.widget_states.widgets.add(id=press, trigger_value=True)
        self.socket.send(BackMsg(rerun_script=state).SerializeToString())
        self._take_in()

    def _take_in(self) -> None:
        seen: set[tuple[int, ...]] = set()
        whole = True
        while True:
            message = ForwardMsg.FromString(self.socket.recv(timeout=PATIENCE))  # type: ignore[arg-type]
            kind = message.WhichOneof("type")
            if kind == "new_session":
                new = message.new_session
                self.session = new.initialize.session_id or self.session
                whole = not message.metadata.run.fragment_ids
                seen.clear()
                if whole:
                    self.polls.clear()
                if new.page_script_hash != self.page:
                    self.page = new.page_script_hash
                    self.shown.clear()
                    self.values.clear()
            elif kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "auto_rerun":
                self.polls.add(message.auto_rerun.fragment_id)
            elif kind == "stop_auto_rerun":
                self.polls -= set(message.stop_auto_rerun.fragment_ids)
            elif kind == "delta":
                place = tuple(message.metadata.delta_path)
                seen.add(place)
                if message.delta.WhichOneof("type") == "new_element":
                    self.shown[place] = message.delta.new_element
            elif kind == "script_finished":
                if message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                    continue  # another run follows at once
                if whole:
                    self.shown = {k: v for k, v in self.shown.items() if k in seen}
                return

    def elements(self, kind: str) -> Iterator[Any]:
        """The elements of a kind that are shown, the newest last."""
        for element in list(self.shown.values()):
            if element.WhichOneof("type") == kind:
                yield getattr(element, kind)

    def button(self, key: str) -> Any:
        """The button whose key begins with `key`, or None."""
        found = (b for b in self.elements("button") if re.search(rf"-{key}[^-]*$", b.id))
        return next((b for b in found if not b.disabled), None)

    def press(self, key: str) -> bool:
        """Press a button; False when it is not there."""
        button = self.button(key)
        if button is not None:
            self.run(button.id)
        return button is not None

    def faults(self) -> list[str]:
        """Tracebacks, and the sentence of what was not foreseen."""
        said = [f"exception: {e.message[:200]}" for e in self.elements("exception")]
        odd = say("shell.something_went_wrong_reference", reference="")[:20]
        return said + [a.body[:200] for a in self.elements("alert") if a.body.startswith(odd)]

    def poll(self) -> None:
        """Run the fragments again that asked for it."""
        for fragment in list(self.polls):
            if fragment in self.polls:  # a run of the whole page meanwhile forgets them
                self.run(fragment=fragment)

    def go(self, path: str) -> None:
        """Open another page of the menu."""
        self.run(path=path)

    def upload(self, raw: bytes, name: str) -> None:
        """Hand a file to the page's uploader."""
        uploader = next(self.elements("file_uploader"))
        asked = FileURLsRequest(
            request_id=uuid.uuid4().hex, file_names=[name], session_id=self.session
        )
        self.socket.send(BackMsg(file_urls_request=asked).SerializeToString())
        while True:
            answer = ForwardMsg.FromString(self.socket.recv(timeout=PATIENCE))  # type: ignore[arg-type]
            if answer.WhichOneof("type") == "file_urls_response":
                break
        (urls,) = answer.file_urls_response.file_urls
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body = (
            head.encode()
            + b"Content-Type: image/png\r\n\r\n"
            + raw
            + f"\r\n--{edge}--\r\n".encode()
        )
        http_ = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}", "X-Xsrftoken": self.token}
        http_.request("PUT", urls.upload_url, body, {**self.headers, **kind})
        status = http_.getresponse().status
        http_.close()
        if status >= 300:
            raise AssertionError(f"an upload was answered {status}")
        info = {"file_id": urls.file_id, "name": name, "size": len(raw), "file_urls": urls}
        self.values[uploader.id] = ("files", info)
        self.run()

    def component(self, name: str) -> Any:
        """The newest component of ours with that name, or None."""
        found = [c for c in self.elements("bidi_component") if c.component_name.endswith(name)]
        return found[-1] if found else None

    def draw(self, chance: random.Random) -> None:
        """An arrow, and a mask round it as a polygon."""
        if (room := self.component("workbench_room")) is not None:
            self.values[room.id] = ("json_value", json.dumps({"size": {"w": 640, "h": 480}}))
            self.run()
        stage = self.component("workbench_canvas")
        if stage is None:
            return
        data = json.loads(stage.json)
        width, height = data["size"]
        x, y = chance.randint(10, width // 2), chance.randint(10, height // 2)
        arrow = {"on": True, "pair": [x, y, x + chance.randint(5, 12), y + chance.randint(-5, 9)]}
        corners = [[x - 8, y - 8], [x + 26, y - 8], [x + 26, y + 24], [x - 8, y + 24]]
        self.number += 1
        sent = {
            "id": self.name, "number": self.number, "generation": data["generation"],
            "arrows": [arrow], "brush": 0,
            "log": [{"number": self.number, "kind": "polygon", "points": corners}],
        }  # fmt: skip
        self.values[stage.id] = ("json_value", json.dumps({"sent": sent}))
        self.run()


class Crowd:
    """All people, and what they came to."""

    def __init__(self, port: int, think: float) -> None:
        """Nobody yet."""
        self.port, self.think = port, think
        self.over = threading.Event()
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []

    def person(self, number: int) -> None:
        """Come, work, close the tab, come back, until it is over."""
        chance = random.Random(number)  # noqa: S311
        while not self.over.is_set():
            tab = None
            try:
                tab = Tab(self.port)
                self._visit(tab, chance)
            except Exception as exc:
                if not self.over.is_set():
                    self.faults.append(f"person {number}: {type(exc).__name__}: {str(exc)[:200]}")
                    self.over.wait(5)
            finally:
                if tab is not None:
                    self.faults += tab.faults()
                    with contextlib.suppress(Exception):
                        tab.close()
            self._wait(chance)

    def _wait(self, chance: random.Random) -> None:
        self.over.wait(chance.expovariate(1 / self.think))

    def _visit(self, tab: Tab, chance: random.Random) -> None:
        tab.run()
        self._wait(chance)
        tab.upload(picture(chance), f"p{chance.randrange(10**6)}.png")
        self.done["upload"] += 1
        for _ in range(chance.randint(1, 3)):
            self._wait(chance)
            tab.draw(chance)
            self._wait(chance)
            if tab.press("run"):
                self.done["run"] += 1
                self._follow(tab, chance, "drag", cancel=chance.random() < 0.2)
            self.faults += tab.faults()
            if self.over.is_set():
                return
        if chance.random() < 0.5:
            tab.go("")
            if tab.press("train"):
                self.done["train"] += 1
                self._follow(tab, chance, "train", cancel=chance.random() < 0.7)
        for page in chance.sample(("results", "history", "compare", "settings", "drag", ""), 3):
            self._wait(chance)
            tab.go(page)
            self.done["page"] += 1
            self.faults += tab.faults()
            if self.over.is_set():
                return

    def _follow(self, tab: Tab, chance: random.Random, key: str, *, cancel: bool) -> None:
        """Look at a job until it has ended, and perhaps cancel it."""
        end = time.monotonic() + 15 * PATIENCE  # one worker, and everybody queues
        while (stop := tab.button(f"cancel_{key}")) is not None and not self.over.is_set():
            if cancel and chance.random() < 0.4:
                tab.run(stop.id)
                self.done["cancel"] += 1
                cancel = False
            self.over.wait(2.0)
            tab.poll()
            if not tab.polls:
                tab.run()
            if time.monotonic() > end:
                raise AssertionError("a job did not end")


def picture(chance: random.Random) -> bytes:
    """A small PNG that nobody had before."""
    rng = np.random.default_rng(chance.randrange(2**32))
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((64, 48), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def anonymous(process: psutil.Process) -> int:
    """Bytes of memory that a process has for itself, its files' pages (shared libraries) left out.

    Not psutil's USS: torch's libraries count in it as soon as the last other process that has them
    ends. That moved it by 40 MB while the server did nothing else than before.
    """
    info = process.memory_info()
    return int(info.rss - info.shared) if hasattr(info, "shared") else int(info.rss)


class Watch:
    """The server's memory, handles and threads, its helper's included."""

    def __init__(self, process: psutil.Process, crowd: Crowd, store: Store) -> None:
        """Nothing measured yet."""
        self.process, self.crowd, self.store = process, crowd, store
        self.rows: list[dict[str, float]] = []
        self.begun = time.monotonic()
        names = ("min", "MB", "handles", "threads", "children", "CPU s", "edits", "open jobs")
        print("  ".join(f"{n:>9}" for n in names), " what was done", flush=True)

    def look(self) -> dict[str, float]:
        """Measure once and print the line."""
        children = self.process.children(recursive=True)
        records = list(self.store.records())
        row = {
            "minutes": (time.monotonic() - self.begun) / 60,
            "memory": anonymous(self.process) / 2**20,
            "handles": float(self.process.num_fds()),
            "threads": float(self.process.num_threads()),
            "children": float(len(children)),
            "cpu": sum(self.process.cpu_times()[:2]),
            "edits": float(len(records)),
            "open": float(sum(not r.status.ended for r in records)),
        }
        self.rows.append(row)
        done = ", ".join(f"{n} {name}" for name, n in sorted(self.crowd.done.items()))
        print("  ".join(f"{v:9.0f}" for v in row.values()), f" {done}", flush=True)
        return row

    def short(self) -> list[str]:
        """What grew: the last rows against the middle of the run, after everybody has left."""
        *busy, left = self.rows
        middle, last = busy[len(busy) // 2], busy[-1]
        said = []
        explained = PER_EDIT * (last["edits"] - middle["edits"]) + MEMORY
        if last["memory"] - middle["memory"] > explained:
            grew = last["memory"] - middle["memory"]
            said.append(f"memory grew by {grew:.0f} MB in the second half")
        for name in ("handles", "threads"):
            most = max(r[name] for r in busy[1 : len(busy) // 2 + 1])
            if last[name] > 1.25 * most + 10:
                said.append(f"{name} grew from {most:.0f} to {last[name]:.0f}")
            if left[name] > most:
                said.append(f"{left[name]:.0f} {name} after everybody had left")
        if left["open"]:
            said.append(f"{left['open']:.0f} jobs were left open")
        return said


def server_command(folder: Path) -> tuple[list[str], dict[str, str]]:
    """How the app of this checkout is started with the tests' tiny model, its cache in `folder`."""
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    cache.joinpath("models.toml").write_text(
        f'[micro]\npath = "{MICRO.as_posix()}"\ntitle = "Micro"\nnative_size = 64\n',
        encoding="utf-8",
    )
    env = {
        **os.environ, "WORKBENCH_CACHE": str(cache), "WORKBENCH_MODEL": "micro",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return [sys.executable, "-m", "workbench", "app"], env


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The app on loopback; its log in the folder."""
    command, env = server_command(folder)
    with (folder / f"server-{port}.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603
            [*command, "--port", str(port)], cwd=REPO, env=env, stdout=log, stderr=log
        )


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + PATIENCE
    while not answers(port):
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError("the server did not start")
        time.sleep(0.5)


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers, ended when the block is left."""
    process = start_server(folder, port)
    try:
        wait_for(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    """Whether a server listens and is well."""
    http_ = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.suppress(OSError):
        http_.request("GET", "/_stcore/health")
        return http_.getresponse().status == 200
    return False


def soak(minutes: float, sessions: int, think: float, port: int) -> list[str]:
    """Run it and print the table; what fell short."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, serving(Path(name), port) as server:
        store = Store(Path(name) / "cache" / "history")
        crowd = Crowd(port, think)
        watch = Watch(psutil.Process(server.pid), crowd, store)
        watch.look()
        people = [
            threading.Thread(target=crowd.person, args=(n,), daemon=True) for n in range(sessions)
        ]
        for one in people:
            one.start()
            time.sleep(think / 4)
        end, every = time.monotonic() + 60 * minutes, 60 * min(10.0, minutes / 6)
        while (rest := end - time.monotonic()) > 1 and server.poll() is None:
            time.sleep(min(rest, every))
            watch.look()
        crowd.over.set()
        for one in people:
            one.join(PATIENCE)
        time.sleep(AFTER)
        watch.look()
        short = [*crowd.faults, *watch.short()]
        log = (Path(name) / f"server-{port}.log").read_text(errors="replace")
        short += [
            f"log: {line[:200]}" for line in log.splitlines() if "Error" in line or "ERROR" in line
        ]
        report = verify(store)
        if not report.ok:
            short.append(f"history verify: {report}")
        failed = [r for r in store.records() if r.status is JobState.FAILED]
        short += [f"an edit failed: {r.error}" for r in failed[:5]]
        store.close()
    return short


def main(arguments: list[str]) -> int:
    """Print the table; 1 when something fell short."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--think", type=float, default=8.0, help="seconds between two moves")
    parser.add_argument("--port", type=int, default=8698)
    told = parser.parse_args(arguments)
    os.nice(19)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    short = soak(told.minutes, told.sessions, told.think, told.port)
    for text, times in Counter(short).most_common(20):
        print(f"  X  {text}" + (f" ({times} times)" if times > 1 else ""))
    print("ok" if not short else f"{len(short)} things fell short")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
