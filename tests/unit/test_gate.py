"""The gate in front of the server: hosts, origins, owners, and the headers of every answer."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from workbench.core.errors import BadInput
from workbench.ui.shell.gate import OWNER, Gate, Hosts, Owners

LOCAL = Hosts()
PROXIED = Hosts.of({"WORKBENCH_HOSTS": "studio.example, studio.example:8443"}, "127.0.0.1")
EVERYWHERE = Hosts(address="0.0.0.0")


def ask(
    gate_or_owners: Owners | None = None, hosts: Hosts = LOCAL, kind: str = "http", **headers: str
) -> tuple[list[Any], dict[str, str] | None]:
    """What the gate sends for one request, and the headers with which the pages saw it (or None)."""
    seen: list[dict[str, str]] = []
    sent: list[Any] = []

    async def pages(scope: Any, _receive: Any, send: Any) -> None:
        seen.append({k.decode(): v.decode() for k, v in scope["headers"]})
        if scope["type"] == "http":
            head = [(b"content-type", b"text/html; charset=utf-8"), (b"x-frame-options", b"ALLOW")]
            await send({"type": "http.response.start", "status": 200, "headers": head})

    async def receive() -> Any:
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(pages, hosts=hosts, owners=gate_or_owners or Owners("shared", b""))
    named = {"host": "127.0.0.1:8501", **{k.replace("_", "-"): v for k, v in headers.items()}}
    raw = [(k.encode(), v.encode()) for k, v in named.items() if v]
    asyncio.run(gate({"type": kind, "headers": raw}, receive, send))
    return sent, seen[0] if seen else None


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        (LOCAL, "127.0.0.1:8501", True),
        (LOCAL, "LOCALHOST:8501", True),
        (LOCAL, "localhost.", True),
        (LOCAL, "[::1]:8501", True),
        (LOCAL, "rebound.example:8501", False),
        (LOCAL, "127.0.0.1.example", False),
        (LOCAL, "192.0.2.7:8501", False),
        (LOCAL, "localhost:x", False),
        (LOCAL, "user@localhost", False),
        (LOCAL, "localhost/path", False),
        (LOCAL, "", False),
        (PROXIED, "studio.example", True),
        (PROXIED, "studio.example:8443", True),
        (PROXIED, "other.example", False),
        (EVERYWHERE, "192.0.2.7:8501", True),
        (EVERYWHERE, "[2001:db8::1]:8501", True),
        (EVERYWHERE, "rebound.example", False),
    ],
)
def test_only_our_own_names_are_answered(hosts: Hosts, host: str, allowed: bool) -> None:
    for kind in ("http", "websocket"):
        sent, seen = ask(hosts=hosts, kind=kind, host=host)
        assert (seen is not None) == allowed
        if not allowed:
            assert sent[0].get("status") == 403 or sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    ("hosts", "host", "origin", "allowed"),
    [
        (LOCAL, "127.0.0.1:8501", "http://127.0.0.1:8501", True),
        (LOCAL, "localhost:8501", "http://localhost:8501", True),
        (LOCAL, "localhost", "http://localhost:80", True),
        (LOCAL, "127.0.0.1:8501", "http://127.0.0.1:9000", False),
        (LOCAL, "127.0.0.1:8501", "http://localhost:8501", False),
        (LOCAL, "127.0.0.1:8501", "http://127.0.0.1", False),
        (LOCAL, "127.0.0.1:8501", "https://evil.example", False),
        (LOCAL, "127.0.0.1:8501", "null", False),
        (LOCAL, "127.0.0.1:8501", "file://", False),
        (PROXIED, "127.0.0.1:8501", "https://studio.example", True),
        (PROXIED, "127.0.0.1:8501", "https://studio.example:8443", True),
        (PROXIED, "127.0.0.1:8501", "https://studio.example:9000", False),
    ],
)
def test_the_origin_counts_with_its_port(
    hosts: Hosts, host: str, origin: str, allowed: bool
) -> None:
    for kind in ("http", "websocket"):
        assert (ask(hosts=hosts, kind=kind, host=host, origin=origin)[1] is not None) == allowed


def test_what_another_page_loads_without_saying_its_origin() -> None:
    loads = {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
    assert ask(sec_fetch_site="same-site", **loads)[1] is None
    assert ask(sec_fetch_site="cross-site", **loads)[1] is None
    assert ask(sec_fetch_site="same-origin", **loads)[1] is not None
    assert ask(sec_fetch_site="cross-site", sec_fetch_mode="navigate")[1] is not None  # a link


def test_every_answer_forbids_frames_once() -> None:
    for headers in ({}, {"host": "evil.example"}):
        sent, _ = ask(**headers)
        found = [v for k, v in sent[0]["headers"] if k == b"x-frame-options"]
        assert found == [b"DENY"]
        assert (b"content-security-policy", b"frame-ancestors 'none'") in sent[0]["headers"]


# --- owners -------------------------------------------------------------------------------------------


def cookie_of(sent: list[Any]) -> str:
    """The cookie that an answer sets, as a browser sends it back; "" for none."""
    found = [v.decode() for k, v in sent[0]["headers"] if k == b"set-cookie"]
    return found[0].partition(";")[0] if found else ""


def test_shared_has_no_owner_and_takes_a_forged_one_away() -> None:
    _, seen = ask(x_workbench_owner="somebody")
    assert seen is not None
    assert OWNER not in seen


def test_fault_46_each_browser_is_an_owner_by_a_signed_cookie(tmp_path: Path) -> None:
    owners = Owners.of({"WORKBENCH_OWNERS": "browser"}, LOCAL, tmp_path)
    sent, _ = ask(owners)
    kept = cookie_of(sent)
    again, seen = ask(owners, cookie=kept, x_workbench_owner="somebody")
    assert not cookie_of(again)
    assert seen is not None
    assert seen[OWNER] == kept.partition("=")[2].partition(".")[0]
    other, _ = ask(owners)
    assert cookie_of(other) != kept
    # the key outlives the server
    later = Owners.of({"WORKBENCH_OWNERS": "browser"}, LOCAL, tmp_path)
    assert later.of_cookie(kept) == seen[OWNER]
    assert stat.S_IMODE((tmp_path / "owners.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("change", ["name", "mark", "cut", "empty"])
def test_fault_46_a_changed_cookie_is_nobody(tmp_path: Path, change: str) -> None:
    owners = Owners.of({"WORKBENCH_OWNERS": "browser"}, LOCAL, tmp_path)
    kept = cookie_of(ask(owners)[0])
    name, _, mark = kept.partition("=")[2].partition(".")
    forged = {
        "name": f"workbench_owner={'0' * 32}.{mark}",
        "mark": f"workbench_owner={name}.{'0' * 64}",
        "cut": f"workbench_owner={name}",
        "empty": "workbench_owner=.",
    }[change]
    assert owners.of_cookie(forged) is None
    sent, seen = ask(owners, cookie=forged)
    assert cookie_of(sent)
    assert seen is not None
    assert seen[OWNER] not in (name, "0" * 32)


def test_a_proxy_names_the_owner_and_shows_its_secret() -> None:
    environment = {"WORKBENCH_OWNERS": "X-Forwarded-User", "WORKBENCH_PROXY_SECRET": "s3cret"}
    owners = Owners.of(environment, PROXIED, Path())
    good = {"x_forwarded_user": "ada", "x_workbench_secret": "s3cret"}
    _, seen = ask(owners, PROXIED, **good)
    assert seen is not None
    assert seen[OWNER] == "ada"
    assert "x-workbench-secret" not in seen
    for bad in (
        {"x_workbench_secret": "wrong"},
        {"x_workbench_secret": ""},
        {"x_forwarded_user": ""},
    ):
        assert ask(owners, PROXIED, **{**good, **bad})[1] is None


def test_a_header_without_a_secret_is_refused() -> None:
    with pytest.raises(BadInput) as found:
        Owners.of({"WORKBENCH_OWNERS": "X-Forwarded-User"}, PROXIED, Path())
    assert "WORKBENCH_PROXY_SECRET" in str(found.value)


@pytest.mark.parametrize(
    ("hosts", "mode"), [(LOCAL, "shared"), (PROXIED, "browser"), (EVERYWHERE, "browser")]
)
def test_sharing_is_the_default_on_this_machine_only(
    tmp_path: Path, hosts: Hosts, mode: str
) -> None:
    assert Owners.of({}, hosts, tmp_path).mode == mode
