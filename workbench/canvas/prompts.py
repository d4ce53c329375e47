"""What a prompt holds that the model will not take as it is meant: other tools' syntax, too much text."""

from __future__ import annotations

import gzip
import itertools
import re
from functools import lru_cache
from pathlib import Path

MOST_TOKENS = 75  # CLIP reads 77 with its two marks
# Syntax of A1111, ComfyUI and their kin: code, what it looks like
SYNTAX: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("prompt-lora", re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)),
    ("prompt-embedding", re.compile(r"\bembedding:[\w.-]+|<[\w-]+>", re.IGNORECASE)),
    ("prompt-weights", re.compile(r"[(\[][^()\[\]]*:\s*-?\d*\.?\d+\s*[)\]]|\(\([^()]*\)\)|\[\[[^\[\]]*\]\]")),
    ("prompt-choices", re.compile(r"\{[^{}]*\|[^{}]*\}|\[[^\[\]]*\|[^\[\]]*\]|__[\w/-]+__|\bBREAK\b"
                                r"|\bAND\b")),
)  # fmt: skip
_MERGES = Path(__file__).resolve().parents[1] / "weights" / "standard" / "clip_merges.txt.gz"
_PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


def other_syntax(prompt: str) -> list[tuple[str, str]]:
    """(code, the place) of each kind of syntax that is taken literally here."""
    found = []
    rest = prompt
    for code, pattern in SYNTAX:
        match = pattern.search(rest)
        if match:
            found.append((code, match[0][:40]))
            rest = pattern.sub(" ", rest)
    return found


def tokens(prompt: str) -> int:
    """How many of CLIP's tokens a prompt has, without the two marks."""
    return sum(_count(piece) for piece in _PIECE.findall(prompt.lower()))


@lru_cache(maxsize=1)
def _ranks() -> dict[tuple[str, str], int]:
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    pairs = (line.split(" ") for line in lines)
    return {(a, b): i for i, (a, b) in enumerate(pairs)}


@lru_cache(maxsize=1)
def _letters() -> dict[int, str]:
    """Byte -> the printable letter that stands for it in the merges (as GPT-2 has it)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {b: chr(b) for b in plain} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)
    }


@lru_cache(maxsize=4096)
def _count(piece: str) -> int:
    """Tokens of one piece, by byte-pair merges in the order of their rank."""
    parts = [_letters()[b] for b in piece.encode("utf-8", "replace")]
    if len(parts) > 200:
        return len(parts) // 4  # no word; the exact number does not matter
    parts[-1] += "</w>"
    ranks = _ranks()
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda p: ranks.get(p, 10**9))
        if best not in ranks:
            break
        merged: list[str] = []
        i = 0
        while i < len(parts):
            if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                merged.append(parts[i] + parts[i + 1])
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return len(parts)
