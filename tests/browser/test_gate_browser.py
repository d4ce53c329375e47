"""A hostile page in a real browser, and two people behind one server."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import ARGS, Bench, Server, picture
from find_chromium import find_chromium
from playwright.sync_api import Browser, expect

from workbench.ui.shell.forms import say

# What a page may try; each answers "open" where it got through.
ATTACKS = """async (target) => {
  const socket = new Promise((done) => {
    const ws = new WebSocket(target.replace("http", "ws") + "/_stcore/stream", ["streamlit"]);
    ws.onopen = () => done("open");
    ws.onerror = () => done("closed");
  });
  const read = fetch(target + "/_stcore/host-config").then((a) => a.text())
    .then(() => "open", () => "closed");
  const write = fetch(target + "/_stcore/upload_file/a/b", {method: "PUT", body: "x"})
    .then((a) => (a.ok ? "open" : "closed"), () => "closed");
  const image = new Promise((done) => {
    const img = new Image();
    img.onload = () => done("open");
    img.onerror = () => done("closed");
    img.src = target + "/favicon.png";
  });
  const frame = new Promise((done) => {
    const box = document.createElement("iframe");
    box.onload = () => {
      try { done(box.contentWindow.location.href === "about:blank" ? "closed" : "open"); }
      catch { done(box.contentWindow.length ? "open" : "closed"); }
    };
    box.src = target;
    document.body.append(box);
  });
  return Object.fromEntries(await Promise.all(Object.entries({socket, read, write, image, frame})
    .map(async ([name, answer]) => [name, await answer])));
}"""
CLOSED = dict.fromkeys(("socket", "read", "write", "image", "frame"), "closed")


@pytest.fixture
def other_port(tmp_path: Path) -> Iterator[str]:
    """A page on another port of this machine."""
    tmp_path.joinpath("index.html").write_text("<body>elsewhere</body>", encoding="utf-8")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()


def test_a_page_on_another_port_gets_nothing(
    chromium: Browser, server: Server, other_port: str
) -> None:
    page = chromium.new_page()
    page.goto(other_port)
    assert page.evaluate(ATTACKS, server.url) == CLOSED
    page.goto(server.url)  # the same from our own page: what is closed above is open here
    own = page.evaluate(ATTACKS, server.url)
    assert {**own, "write": "", "frame": ""} == {
        **dict.fromkeys(("socket", "read", "image"), "open"),
        "write": "",
        "frame": "",
    }
    page.close()


def test_a_name_that_resolves_to_this_machine_gets_nothing(
    chromium: Browser, server: Server
) -> None:
    rules = f"--host-resolver-rules=MAP rebound.example 127.0.0.1:{server.port}"
    browser = chromium.browser_type.launch(executable_path=find_chromium(), args=[*ARGS, rules])
    page = browser.new_page()
    answer = page.goto(f"http://rebound.example:{server.port}/")
    assert answer is not None
    assert answer.status == 403
    assert "WORKBENCH_HOSTS" in page.inner_text("body")
    here = page.evaluate(ATTACKS, f"http://rebound.example:{server.port}")
    assert here["socket"] == here["write"] == here["image"] == "closed"
    page.goto(f"{server.url}/")
    expect(page.get_by_role("heading", level=1)).to_be_visible()  # the browser itself is well
    browser.close()


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Server]:
    """A server where each browser has its own work."""
    made = Server(tmp_path / "many", WORKBENCH_OWNERS="browser")
    yield made
    made.store.close()
    made.stop()


def test_fault_46_two_browsers_see_their_own_work_only(chromium: Browser, many: Server) -> None:
    def come() -> Bench:
        return Bench(chromium.new_context(viewport={"width": 1440, "height": 1000}), many.url)

    ada, ben = come(), come()
    ada.open("/")
    ada.upload(picture(64, 48, seed=1), "ada.png")
    project = ada.query("project")
    assert project
    assert many.store.projects.load(project).owner
    ben.open("/")
    expect(ben.page.get_by_text(say("upload.your_picture"), exact=True)).to_be_visible()
    assert not ben.page.get_by_role("button", name="ada").count()
    ben.open("/drag", project=project)
    expect(ben.page.get_by_text(f"There is no project {project} here.")).to_be_visible()
    ada.open("/")  # a new session of the same browser
    expect(ada.page.get_by_role("button", name="ada")).to_be_visible()
    for one in (ada, ben):
        one.check()
        one.context.close()
