"""One project in two tabs, and one history with several owners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.canvas.drawing import Arrow
from workbench.core.errors import BadInput
from workbench.core.request import Point, PointPair
from workbench.storage.history import Store
from workbench.storage.history.projects import Project
from workbench.ui.shell.projection import merge_arrows

A, B, C = ({"pair": [n, n, n + 9, n]} for n in (1.0, 2.0, 3.0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history")


def project(store: Store, **fields: Any) -> Project:
    made = store.projects.create(title="Robot")
    return store.projects.update(made, **fields)[0]


def test_arrows_of_both_tabs_are_kept(store: Store) -> None:
    seen = project(store, drawing={"arrows": [A], "shapes": []})
    store.projects.update(seen, drawing={"arrows": [A, B], "shapes": []})
    saved, collided = store.projects.update(seen, drawing={"arrows": [A, C], "shapes": []})
    assert saved.drawing["arrows"] == [A, B, C]
    assert not collided
    assert store.projects.load(seen.id) == saved


def test_what_one_tab_removes_does_not_come_back(store: Store) -> None:
    seen = project(store, drawing={"arrows": [A, B]})
    store.projects.update(seen, drawing={"arrows": [B]})
    saved, collided = store.projects.update(seen, drawing={"arrows": [A, B, C]})
    assert saved.drawing["arrows"] == [B, C]
    assert not collided


def test_the_same_arrow_changed_twice_is_kept_twice_and_told(store: Store) -> None:
    seen = project(store, drawing={"arrows": [A]})
    store.projects.update(seen, drawing={"arrows": [B]})
    saved, collided = store.projects.update(seen, drawing={"arrows": [C]})
    assert saved.drawing["arrows"] == [B, C]
    assert collided == ("arrows",)


def test_settings_merge_entry_by_entry(store: Store) -> None:
    seen = project(store, settings={"seed": 1, "jobs": ["x"], "crop": True})
    store.projects.update(seen, settings={"seed": 2, "jobs": ["x", "y"], "crop": True})
    saved, collided = store.projects.update(
        seen, settings={"seed": 1, "jobs": ["x", "z"], "crop": False}, prompt="a robot"
    )
    assert saved.settings == {"seed": 2, "jobs": ["x", "y", "z"], "crop": False}
    assert saved.prompt == "a robot"
    assert not collided


def test_two_prompts_are_told_and_the_last_counts(store: Store) -> None:
    seen = project(store, prompt="")
    store.projects.update(seen, prompt="first")
    saved, collided = store.projects.update(seen, prompt="second")
    assert (saved.prompt, collided) == ("second", ("prompt",))


def test_every_save_raises_the_revision_and_old_files_have_none(store: Store) -> None:
    made = project(store)
    assert store.projects.save(made).revision == made.revision + 1
    assert Project.from_json(made.id, {"id": made.id}).revision == 0
    for bad in (-1, True, 1.5, "1"):
        with pytest.raises(BadInput):
            Project.from_json(made.id, {"id": made.id, "revision": bad})


def test_fault_46_an_owner_sees_and_changes_only_their_own(store: Store) -> None:
    ada, ben = store.of("ada"), store.of("ben")
    mine = ada.projects.create(title="Ada's")
    assert [p.title for p in ada.projects.recent()] == ["Ada's"]
    assert ben.projects.recent() == []
    with pytest.raises(BadInput):
        ben.projects.load(mine.id)
    with pytest.raises(BadInput):
        ben.projects.delete(mine.id)
    assert (
        store.projects.load(mine.id).owner == "ada"
    )  # the whole history, for the person who runs it


def _arrow(y: float, by: float = 0.0) -> Arrow:
    return Arrow(PointPair(Point(1, y), Point(9, y + by)))


def test_what_a_browser_did_to_an_old_list_is_done_to_the_present_one() -> None:
    one, two, three, four = (_arrow(y) for y in (1, 2, 3, 4))
    assert merge_arrows((), (one,), (two,)) == (two, one)  # drawn
    assert merge_arrows((one, two), (two,), (one, two, three)) == (two, three)  # removed
    moved = _arrow(1, by=5)
    assert merge_arrows((one, two), (moved, two), (one, two, three)) == (moved, two, three)
    assert merge_arrows((one, two), (moved, two), (two, three)) == (two, three, moved)
    assert merge_arrows((one,), (one, four), (one, four)) == (one, four)  # told twice
    assert merge_arrows((one, two), (one, two), (two, one, three)) == (two, one, three)
