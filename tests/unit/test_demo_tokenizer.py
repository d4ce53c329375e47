"""The caption vocabulary: one token a word, bytes for everything else."""

import json
import shutil

import pytest
import torch

from training.tokenizer import (
    build_tokenizer,
    encode,
    learn_merges,
    load_tokenizer,
    save_tokenizer,
)

CAPTIONS = [
    "a red robot with a laser gun, storybook",
    "a Green Face with long hair in the evening",
    "the cat's tail; a red vase 3",
]
WORDS = ["a", "red", "robot", "with", "laser", "gun", ",", "green", "face", "cat", "'s", "3"]
TEXTS = [*CAPTIONS, "zebra", "", "日本語 Ünïcode 👾 \u0000 \ud7ff", "a" * 500, "<|endoftext|> red"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CAPTIONS)


def test_each_caption_word_is_one_token(tokenizer):
    for word in WORDS:
        ids = tokenizer(word).input_ids
        assert len(ids) == 3, word
        assert ids[0] == tokenizer.bos_token_id
        assert ids[2] == tokenizer.eos_token_id


def test_words_come_back_in_lower_case(tokenizer):
    for caption in CAPTIONS[:2]:
        ids = tokenizer(caption).input_ids
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.replace(" ", "") == caption.lower().replace(" ", "")


def test_unknown_words_fall_back_to_characters(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("zqx").input_ids)
    assert tokens[1:-1] == ["z", "q", "x</w>"]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_encodes_to_77_known_ids(tokenizer, text):
    ids = encode(tokenizer, [text])
    assert ids.shape == (1, 77)
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0
    assert int(ids.max()) < len(tokenizer)
    assert ids[0, 0] == tokenizer.bos_token_id
    assert ids[0, -1] == tokenizer.eos_token_id


def test_the_special_tokens_follow_clips_convention(tokenizer):
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer.eos_token_id != 2  # CLIPTextModel treats 2 as its own old mistake


def test_files_bring_the_same_tokenizer_back(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "whole")
    again = load_tokenizer(tmp_path / "whole")
    assert again.model_max_length == 77
    plain = tmp_path / "plain"  # as another tool would write it: CLIP's two files alone
    plain.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "whole" / name, plain)
    clip = load_tokenizer(plain)
    for text in TEXTS:
        expected = encode(tokenizer, [text])
        assert torch.equal(encode(again, [text]), expected)
        assert torch.equal(encode(clip, [text]), expected)
    vocabulary = json.loads((plain / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == tokenizer.get_vocab()


def test_the_vocabulary_depends_on_the_words_alone():
    shuffled = [" ".join(reversed(caption.split())) for caption in reversed(CAPTIONS)]
    assert learn_merges(CAPTIONS) == learn_merges(shuffled * 3)


def test_merges_are_byte_pair_encoding():
    # Pairs of {ab, abc}: (a, b</w>), (a, b), (b, c</w>): all once, so the alphabet decides.
    assert learn_merges(["ab abc"]) == [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]
