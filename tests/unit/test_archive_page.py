"""The page of an export: escaped, self-contained, in the order of the tree."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest
from archive_samples import edit, entries

from workbench.core.record import EditRecord, JobState
from workbench.storage.archive.write import export_zip
from workbench.storage.history import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """Another machine's history."""
    return Store(tmp_path / "other")


# --- the page ---------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags, attributes and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page_of(raw: bytes) -> Page:
    return Page(entries(raw)["index.html"].decode())


NASTY = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;${toc}$count"


def test_every_text_of_the_page_is_escaped(store: Store) -> None:
    record = edit(store, 1, prompt=NASTY)
    assert record.result is not None
    name = store.begin(
        dataclasses.replace(
            record.request,
            image=dataclasses.replace(record.request.image, name=NASTY),
            model=dataclasses.replace(record.request.model, name=NASTY, fingerprint=NASTY),
            parent=NASTY,
        )
    )
    store.finish(
        EditRecord(
            id=name,
            request=store.pending()[0].request,
            status=JobState.FAILED,
            error=NASTY,
            finished=NASTY,
            environment={NASTY: NASTY},
            result=dataclasses.replace(
                record.result, notices=(NASTY,), stop=NASTY, seconds={NASTY: 1.0}, cached=(NASTY,)
            ),
        )
    )
    store.annotate(name, title=NASTY, note=NASTY)
    page = page_of(export_zip(store))
    kinds = {tag for tag, _attrs in page.tags}
    assert "script" not in kinds
    assert not any(key.startswith("on") for _tag, attrs in page.tags for key in attrs)
    assert page.text.count(NASTY) >= 10
    links = [a.get("href") or a.get("src") or "" for _t, a in page.tags]
    assert all(not link.lower().startswith("javascript") for link in links)


def test_the_page_needs_nothing_from_elsewhere(store: Store) -> None:
    a = edit(store, 1)
    edit(store, 2, parent=a.id)
    raw = export_zip(store)
    files, page = entries(raw), page_of(raw)
    links = [v for _t, attrs in page.tags for k, v in attrs.items() if k in ("href", "src") and v]
    inside = [link for link in links if not link.startswith("#")]
    assert inside
    assert all(link in files for link in inside)
    anchors = {attrs.get("id") for _t, attrs in page.tags}
    assert all(link[1:] in anchors for link in links if link.startswith("#"))
    assert "//" not in files["index.html"].decode().replace("<!doctype", "")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_page_shows_edits_in_the_order_of_their_tree(store: Store) -> None:
    root = edit(store, 1, prompt="root")
    other_root = edit(store, 2, prompt="second root")
    child = edit(store, 3, prompt="child", parent=root.id)
    grandchild = edit(store, 4, prompt="grandchild", parent=child.id)
    page = page_of(export_zip(store))
    shown = [a["id"] for t, a in page.tags if t == "article"]
    assert shown == [root.id, child.id, grandchild.id, other_root.id]
    indented = [a.get("class") for t, a in page.tags if t == "article"]
    assert indented == [None, "child", "child", None]


def test_the_page_has_what_an_edit_was(store: Store) -> None:
    edit(store, 1, prompt="a robot", working_size=256)
    text = page_of(export_zip(store)).text
    for words in ("a robot", "32 × 24 px", "(1, 2) → (5, 6)", "256 px", "Left to go: 1.5, 0.0 px"):
        assert words in text, words
    assert "The step limit was reached" in text


def test_rings_of_parents_are_shown_once_each(store: Store) -> None:
    request = edit(store, 1).request
    first, second = store.begin(request), store.begin(request)
    for name, parent in ((first, second), (second, first)):
        ring = dataclasses.replace(request, parent=parent)
        store.finish(EditRecord(id=name, request=ring, status=JobState.DONE))
    page = page_of(export_zip(store))
    shown = [a["id"] for t, a in page.tags if t == "article"]
    assert len(shown) == len(set(shown)) == 3
