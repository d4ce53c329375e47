"""Fault 23: what people write is shown letter by letter, on every page, and never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from edit_samples import add_edit
from refusals import refusal
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.request import MAX_PROMPT
from workbench.ui.shell.workspace import Workspace

Visit = Callable[..., AppTest]

HOSTILE = (
    "<img src=x onerror=alert(1)> **loud** [go](javascript:alert(1)) $x^2$ :smile: `code` "
    "<script>alert(2)</script> ![pic](http://127.0.0.1/x.png)"
)
TAGS = re.compile(r"<img src=x|<script")  # all that means something in HTML
# what each trick looks like where Markdown is read
MARKUP = re.compile(
    r"(?<!\\)<img src|(?<!\\)<script|(?<!\\)\*\*loud|(?<!\\)\]\(javascript|(?<!\\)\]\(http|(?<!\\)\$x"
    r"|(?<!\\):smile(?<!\\):|(?<!\\)`code"
)
# an input's value is text by nature; everything else on a page is read as Markdown or HTML
INPUTS = ("text_area", "text_input", "selectbox", "multiselect")


def texts(page: AppTest) -> Iterator[tuple[str, str]]:
    """Every text that a page hands to the browser as Markdown or HTML: (kind, text)."""
    for node in page._tree[0], page._tree[1]:
        stack: list[Any] = [node]
        while stack:
            block = stack.pop()
            for child in getattr(block, "children", {}).values():
                stack.append(child)
                kind = getattr(child, "type", "")
                proto = getattr(child, "proto", None)
                for name in ("body", "label", "help", "placeholder"):
                    found = getattr(proto, name, "")
                    if isinstance(found, str) and found and kind not in INPUTS:
                        yield f"{kind}.{name}", found


@pytest.mark.parametrize("path", ["", "drag", "results", "compare", "history", "settings"])
def test_fault_23_prompts_titles_and_notes_are_inert_on_every_page(
    app: App, visit: Visit, path: str
) -> None:
    edit = add_edit(app.store, seed=1, prompt=HOSTILE)
    app.store.annotate(edit.id, title=HOSTILE[:80], note=HOSTILE)
    image = edit.request.image
    space = Workspace.create(app.store, image, title=HOSTILE[:80], prompt=HOSTILE, settings={})
    page = visit(project=space.id, edit=edit.id, edits=edit.id)
    if path:
        page.switch_page(f"pages/{path}.py").run()
    assert not page.exception
    seen = list(texts(page))
    assert len(seen) > 5
    for kind, text in seen:
        tricks = TAGS if kind.startswith("html") else MARKUP
        found = tricks.search(text)
        assert not found, (kind, found, text)


def test_fault_23_the_check_above_would_notice(visit: Visit, app: App) -> None:
    def script(text: str) -> None:
        import streamlit as st

        st.markdown(text)
        st.button(text)

    page = AppTest.from_function(script, args=(HOSTILE,)).run()
    assert [kind for kind, text in texts(page) if MARKUP.search(text)] == [
        "markdown.body", "button.label",
    ]  # fmt: skip


def test_fault_23_a_prompt_of_ten_thousand_characters(app: App, visit: Visit) -> None:
    edit = add_edit(app.store, seed=1)
    with refusal("too-long", "prompt"):
        type(edit.request)(image=edit.request.image, pairs=(), prompt="x" * 10_000)
    space = Workspace.create(
        app.store, edit.request.image, title="x", prompt="ξ" * 10_000, settings={}
    )
    assert len(space.project.prompt) == MAX_PROMPT
    page = visit(project=space.id)
    (area,) = [a for a in page.text_area if a.value == "ξ" * MAX_PROMPT]
    assert area.proto.max_chars == MAX_PROMPT  # the field itself takes no more, and counts
