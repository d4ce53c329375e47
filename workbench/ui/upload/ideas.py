"""Prompts to begin with, in the words that a model was taught. No Streamlit."""

from __future__ import annotations

# The model that ships knows one way of saying things (`demo.scenes`): kind, colours, and the wall's
# name; with other words its pictures get worse.
IDEAS: dict[str, tuple[str, ...]] = {
    "storybook": (
        "a red robot with a raised laser gun, mint wall",
        "an orange cat, blue collar, tail up, lemon wall",
        "a smiling face with long brown hair, tan skin, purple shirt",
        "a landscape with an orange sky, a snowy slate mountain, golden grass",
        "a yellow flower bending left in a blue vase, peach wall",
        "a sailboat with a blue hull and a striped orange sail, blue sky",
        "a blue robot with a lowered laser gun firing, lilac wall",
        "a landscape with a blue sky, a snowy slate mountain, golden grass, a lake",
    )
}
GENERAL = "a red robot holding a laser gun, blue sky, picture book illustration"


def placeholder(model: str) -> str:
    """What stands in an empty prompt field."""
    return IDEAS.get(model, (GENERAL,))[0]


def next_idea(model: str, now: str) -> str:
    """The idea after `now`, else the first; "" for a model without ideas."""
    known = IDEAS.get(model, ())
    if not known:
        return ""
    return known[(known.index(now) + 1) % len(known)] if now in known else known[0]
