"""Who may talk to the server, and as whom: ASGI middleware in front of Streamlit. No Streamlit here.

Streamlit checks origins without their port and hosts on its WebSocket only, and sends no header against
framing. This middleware looks at every request:

    Host      a loopback name, the server's own address, or a name of WORKBENCH_HOSTS. A page of any other
              name that resolves to this machine (DNS rebinding) is refused.
    Origin    the same host and port as the request, or a name of WORKBENCH_HOSTS. Pages on other ports
              of this machine are refused.
    Owner     whose projects, jobs and edits a session sees (WORKBENCH_OWNERS, see `Owners`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.core.errors import BadInput

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
OWNER = "x-workbench-owner"  # written here for the pages; from outside it is taken away
SECRET = "x-workbench-secret"  # noqa: S105 - the name of a header
COOKIE = "workbench_owner"
COOKIE_SECONDS = 400 * 86_400  # the longest that browsers keep one
_USER = re.compile(r"[\x21-\x7e]{1,200}")
_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which the server answers; `named` as in WORKBENCH_HOSTS: name or name:port."""

    named: tuple[str, ...] = ()
    address: str = "127.0.0.1"

    @classmethod
    def of(cls, environment: Mapping[str, str], address: str) -> Hosts:
        """The hosts of WORKBENCH_HOSTS (names with commas) and the address the server listens on."""
        named = environment.get("WORKBENCH_HOSTS", "").lower().split(",")
        return cls(tuple(n.strip() for n in named if n.strip()), address)

    @property
    def only_loopback(self) -> bool:
        """True if nobody but this machine is served."""
        return not self.named and self.address in LOOPBACK

    def allows(self, host: str) -> bool:
        """True if a `Host` header is one of ours."""
        name = _name(host)
        if name is None:
            return False
        if name in (*LOOPBACK, self.address) or name in {_name(n) for n in self.named}:
            return True
        # an address cannot be rebound; where the server listens on all of them, each is its own
        return self.address in EVERY_ADDRESS and _is_address(name)

    def allows_origin(self, origin: str, host: str) -> bool:
        """True if an `Origin` header is the page that the request's `Host` serves, port included."""
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            return False
        port = {"http": ":80", "https": ":443"}[parts.scheme]
        found = parts.netloc.lower().removesuffix(port)
        return found in {n.removesuffix(port) for n in (host.lower(), *self.named)}


def _name(host: str) -> str | None:
    """The name in a Host header; None when it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for one that is not a number
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
    return parts.hostname.rstrip(".") if plain and parts.hostname else None


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


class Owners:
    """Whose work a session sees.

    WORKBENCH_OWNERS:
        shared     everybody sees everything: one person with several tabs, or a group. The default
                   while only this machine is served.
        browser    each browser has its own work, by a signed cookie. The default otherwise.
        (a name)   of the header in which a proxy puts the user; the proxy must also send the value of
                   WORKBENCH_PROXY_SECRET as X-Workbench-Secret.
    """

    def __init__(self, mode: str, key: bytes, secret: str = "") -> None:
        """Tell owners apart by `mode`; `key` signs the cookies."""
        self.mode = mode.lower()
        self._key = key
        self._secret = secret
        if self.by_header and not secret:
            raise BadInput(
                f"WORKBENCH_OWNERS names the header {mode!r}, so WORKBENCH_PROXY_SECRET must be set: "
                "without it, anybody could send that header."
            )

    @classmethod
    def of(cls, environment: Mapping[str, str], hosts: Hosts, folder: Path) -> Owners:
        """The owners that the environment asks for; the key is kept in `folder`.

        Raises:
            BadInput: when a header is named and no secret.
        """
        usual = "shared" if hosts.only_loopback else "browser"
        mode = environment.get("WORKBENCH_OWNERS", "").strip() or usual
        key = _key(folder) if mode.lower() == "browser" else b""
        return cls(mode, key, environment.get("WORKBENCH_PROXY_SECRET", ""))

    @property
    def by_header(self) -> bool:
        """True if a proxy says who it is."""
        return self.mode not in ("shared", "browser")

    def of_request(self, headers: Mapping[str, str]) -> str | None:
        """The owner that a request belongs to; None where everything is shared.

        Raises:
            PermissionError: when the proxy did not show its secret, or named nobody.
        """
        if self.mode == "shared":
            return None
        if self.by_header:
            shown = headers.get(SECRET, "").encode()
            if not hmac.compare_digest(shown, self._secret.encode()):
                raise PermissionError("Open the workbench through its proxy.")
            user = headers.get(self.mode, "").strip()
            if not _USER.fullmatch(user):
                raise PermissionError("The proxy did not say who you are.")
            return user
        return self.of_cookie(headers.get("cookie", "")) or new_owner()

    def of_cookie(self, text: str) -> str | None:
        """The owner in a `Cookie` header that we signed, or None."""
        try:
            found = SimpleCookie(text).get(COOKIE)
        except CookieError:
            return None
        owner, _, mark = (found.value if found else "").partition(".")
        if owner and hmac.compare_digest(mark.encode(), self._sign(owner).encode()):
            return owner
        return None

    def cookie(self, *, secure: bool) -> str:
        """A `Set-Cookie` value for a browser that has none yet."""
        owner = new_owner()
        end = "; Secure" if secure else ""
        return (
            f"{COOKIE}={owner}.{self._sign(owner)}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; "
            f"SameSite=Lax{end}"
        )

    def _sign(self, owner: str) -> str:
        return hmac.new(self._key, owner.encode(), hashlib.sha256).hexdigest()


def new_owner() -> str:
    """An owner that nobody guesses."""
    return secrets.token_hex(16)


def _key(folder: Path) -> bytes:
    """The signing key of this installation; made at the first call, readable by its user alone."""
    path = folder / "owners.key"
    folder.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(f".{secrets.token_hex(4)}")
    with os.fdopen(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
    with contextlib.suppress(FileExistsError):
        os.link(made, path)  # the first server of this folder wins, whole or not at all
    made.unlink()
    return path.read_bytes()


class Gate:
    """The middleware."""

    def __init__(self, app: Asgi, *, hosts: Hosts, owners: Owners) -> None:
        """Stand in front of `app`."""
        self.app = app
        self.hosts = hosts
        self.owners = owners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on with its owner, and add the headers to the answer."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self.check(headers, [k for k, _ in scope["headers"]])
            owner = self.owners.of_request(headers)
        except PermissionError as exc:
            await _refuse(scope, send, str(exc))
            return
        kept = [(k, v) for k, v in scope["headers"] if k not in (OWNER.encode(), SECRET.encode())]
        if owner is not None:
            kept.append((OWNER.encode(), owner.encode("latin-1")))
        new = self.owners.mode == "browser" and self.owners.of_cookie(headers.get("cookie", ""))
        secure = scope.get("scheme") in ("https", "wss") or headers.get("origin", "")[:5] == "https"
        secure = secure or headers.get("x-forwarded-proto") == "https"
        fresh = self.owners.cookie(secure=secure) if new is None else ""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = [(k, v) for k, v in message["headers"] if k.lower() not in dict(_HEADERS)]
                kind = dict(sent).get(b"content-type", b"")
                if fresh and kind.startswith(b"text/html"):
                    sent.append((b"set-cookie", fresh.encode()))
                message = {**message, "headers": [*sent, *_HEADERS]}
            await send(message)

        await self.app({**scope, "headers": kept}, receive, answer)

    def check(self, headers: Mapping[str, str], names: Iterable[bytes]) -> None:
        """See that a request comes from our own pages.

        Raises:
            PermissionError: saying why not.
        """
        host = headers.get("host", "")
        if list(names).count(b"host") != 1 or not self.hosts.allows(host):
            raise PermissionError(
                "This name is not known to the workbench. Add it to WORKBENCH_HOSTS if it is yours."
            )
        origin = headers.get("origin")
        if origin is not None and not self.hosts.allows_origin(origin, host):
            raise PermissionError("A page of another address may not use the workbench.")
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere and headers.get("sec-fetch-mode") != "navigate" and origin is None:
            raise PermissionError("A page of another address may not use the workbench.")


async def _refuse(scope: Scope, send: Send, why: str) -> None:
    """Answer 403 with one sentence; a WebSocket is closed before it opens."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})
