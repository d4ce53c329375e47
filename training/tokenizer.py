"""A vocabulary of our own for CLIP's tokenizer: one token per caption word, bytes for the rest.

The base alphabet is the 256 bytes, each also in its end-of-word form, so that every Unicode text
encodes. The merges are byte-pair encoding learnt on the captions until each word is one token.
Files: `vocab.json` and `merges.txt`, CLIP's own format (and the `tokenizer.json` made of them).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from training.config import MAX_TOKENS

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"


def learn_merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """The merges, in order, that turn every word of `captions` into one token.

    Byte-pair encoding (Sennrich et al. 2016) on the set of words, each counted once, ties broken
    by the alphabet: the result depends on the vocabulary alone. The `tokenizers` library's own
    trainer breaks ties differently in every process, and then a stored latent bank's token ids
    would not fit a tokenizer learnt again.
    """
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer().backend_tokenizer  # for its way of splitting a text into words
    found: set[str] = set()
    for caption in set(captions):
        text = clip.normalizer.normalize_str(caption)
        found.update(piece for piece, _ in clip.pre_tokenizer.pre_tokenize_str(text))
    words = [[*word[:-1], word[-1] + WORD_END] for word in sorted(found)]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_merged(word, best) for word in words]


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with each occurrence of `pair`, from the left, made one symbol."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def _merges(backend: Any) -> list[tuple[str, str]]:
    """The merges of a `tokenizers.Tokenizer`, in order."""
    pairs = json.loads(backend.to_str())["model"]["merges"]
    split = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    return [(left, right) for left, right in split]


def build_tokenizer(captions: Iterable[str]) -> Any:
    """A `CLIPTokenizer` for these captions; `model_max_length` 77, padded with the end token."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges = learn_merges(captions)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    tokens += [left + right for left, right in merges]
    # CLIP's order: the two special tokens come last. An end token with id 2 would also make
    # CLIPTextModel fall back to its old way of finding the end of the text.
    tokens = [*dict.fromkeys(tokens), START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer, `vocab.json` and `merges.txt` included, which transformers 5 leaves out.

    Older transformers, and tools that read CLIP's format, need the two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    merges = [" ".join(pair) for pair in _merges(tokenizer.backend_tokenizer)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that `save_tokenizer` wrote."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: Any, texts: list[str]) -> Any:
    """Token ids, int64 [B,77]: start, words, end, and the end token again as padding."""
    return tokenizer(
        texts,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
