"""ULIDs: 26 characters, sorted by the time of making, not to be guessed.

48 bits of milliseconds and 80 random bits in Crockford's base 32 (github.com/ulid/spec). Ids of one
maker only grow, also when the clock is set back: the time of the largest id seen so far is kept and
the random part is raised by a random amount instead of by one, so that the next id stays a secret.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_RANDOM_BITS = 80
_STEP_BITS = 64
_CENTURY = 100 * 365.25 * 24 * 3600  # seconds


def is_ulid(text: object) -> bool:
    """True for text in a ULID's form; nothing else ever becomes part of a path."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def encode(number: int) -> str:
    """The 26 characters of a number below 2^128."""
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def decode(text: str) -> int:
    """The number of a ULID.

    Raises:
        ValueError: when the text is no ULID.
    """
    if not is_ulid(text):
        raise ValueError(f"{text!r:.60} is no ULID")
    number = 0
    for letter in text:
        number = number << 5 | ALPHABET.index(letter)
    return number


def milliseconds(text: str) -> int:
    """The time that a ULID carries, in ms since 1970 (may run ahead after a clock was set back)."""
    return decode(text) >> _RANDOM_BITS


class UlidMaker:
    """Makes ids that only grow; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._clock = clock
        self._last = 0
        self._lock = threading.Lock()

    def seen(self, text: str) -> None:
        """Let every later id be larger than this one (found on disk, say).

        Other text is passed over, and so is an id of the far future: it was not made by a clock,
        and counting on from it would run out of numbers.
        """
        if is_ulid(text) and milliseconds(text) < (self._clock() + _CENTURY) * 1000:
            with self._lock:
                self._last = max(self._last, decode(text))

    def new(self) -> str:
        """An id larger than all before it."""
        with self._lock:
            now = max(0, int(self._clock() * 1000)) << _RANDOM_BITS
            if now >> _RANDOM_BITS > self._last >> _RANDOM_BITS:
                number = now | secrets.randbits(_RANDOM_BITS)
            else:  # the same millisecond, or the clock went back; a carry moves the time part on
                number = self._last + 1 + secrets.randbits(_STEP_BITS)
            self._last = number
            return encode(number)
