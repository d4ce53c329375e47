"""Order of writing: content on the disk, then its name, then the folder. Locks die with holders."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout
from refusals import refusal

from workbench.core.errors import StoreError
from workbench.storage.files import (
    ProcessLock,
    file_lock,
    release,
    remove_if_free,
    write_atomic,
)


def traced(patch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk, in order; a flush says of what."""
    done: list[str] = []
    kinds: dict[int, str] = {}

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            if name == "open":
                kinds[answer] = "folder" if Path(args[0]).is_dir() else "file"
            what = f"{name} {kinds[args[0]]}" if name == "fsync" else name
            done.append(what)
            return answer

        patch.setattr(os, name, wrapped)

    for name in ("open", "write", "fsync", "replace", "link", "unlink"):
        wrap(name)
    return done


@pytest.mark.parametrize(("overwrite", "naming"), [(True, "replace"), (False, "link")])
def test_content_is_flushed_before_it_has_a_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, naming: str
) -> None:
    with monkeypatch.context() as patch:
        done = traced(patch)
        assert write_atomic(tmp_path / "a", b"x", temp=tmp_path / "temp", overwrite=overwrite)
    kept = [d for d in done if d not in ("open", "unlink")]
    assert kept == ["write", "fsync file", naming, "fsync folder"]
    assert (tmp_path / "a").read_bytes() == b"x"


def test_what_may_be_lost_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = traced(patch)
        write_atomic(tmp_path / "a", b"x", temp=tmp_path / "temp", durable=False)
    assert "fsync file" not in done
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_taken_name_stays(tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    assert write_atomic(tmp_path / "a", b"first", temp=temp, overwrite=False)
    assert not write_atomic(tmp_path / "a", b"second", temp=temp, overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"first"
    assert write_atomic(tmp_path / "a", b"third", temp=temp)
    assert (tmp_path / "a").read_bytes() == b"third"
    assert list(temp.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_an_error_not_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    for overwrite in (True, False):
        with refusal("not-written", kind=StoreError):
            write_atomic(
                tmp_path / "folder" / "a", b"x", temp=tmp_path / "temp", overwrite=overwrite
            )
    assert list((tmp_path / "temp").iterdir()) == []


def test_the_whole_of_a_large_file_is_written(tmp_path: Path) -> None:
    raw = os.urandom(3_000_000)
    write_atomic(tmp_path / "a", raw, temp=tmp_path / "temp")
    assert (tmp_path / "a").read_bytes() == raw


# --- locks -----------------------------------------------------------------------------------------------


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = file_lock(tmp_path / "l"), file_lock(tmp_path / "l")
    first.acquire(blocking=False)
    with pytest.raises(Timeout):
        second.acquire(blocking=False)
    assert not remove_if_free(tmp_path / "l")
    release(first)
    second.acquire(blocking=False)
    release(second)
    assert not (tmp_path / "l").exists()


def test_a_lock_file_removed_under_its_holder_no_longer_locks(tmp_path: Path) -> None:
    """The next one makes a new file; both know which file the name stands for."""
    first, second, third = (file_lock(tmp_path / "l") for _ in range(3))
    first.acquire(blocking=False)
    (tmp_path / "l").unlink()
    second.acquire(blocking=False)
    with pytest.raises(Timeout):
        third.acquire(blocking=False)
    release(second)


def test_a_removed_lock_file_is_made_again(tmp_path: Path) -> None:
    mine, other = ProcessLock(tmp_path), ProcessLock(tmp_path)
    (tmp_path / mine.name).unlink()
    assert not other.lives(mine.name, mine.host)
    mine.renew()
    assert other.lives(mine.name, mine.host)
    mine.close()
    assert not other.lives(mine.name, mine.host)


def test_process_lock(tmp_path: Path) -> None:
    mine, other = ProcessLock(tmp_path), ProcessLock(tmp_path)
    assert mine.lives(mine.name, "any host")
    assert mine.lives(other.name, other.host)
    other.close()
    assert not mine.lives(other.name, other.host)
    for name in ("", "x", "../x.alive", "1-0123456789abcdef.alive"):
        assert not mine.lives(name, mine.host)
    mine.close()


def test_sweeping_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "1-0123456789abcdef.alive").touch()
    (tmp_path / "other.alive").touch()
    mine, other = ProcessLock(tmp_path), ProcessLock(tmp_path)
    mine.sweep()
    assert {p.name for p in tmp_path.iterdir()} == {mine.name, other.name, "other.alive"}


def test_without_locks_the_process_id_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks know no locks: then nobody is called dead who may be alive."""

    def no_locks(_fd: int, _flags: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    mine = ProcessLock(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    gone = int(done.stdout)
    for pid, host, alive in (
        (os.getpid(), socket.gethostname(), True),
        (gone, socket.gethostname(), False),
        (gone, "elsewhere", True),
    ):
        name = f"{pid}-0123456789abcdef.alive"
        (tmp_path / name).touch()
        assert mine.lives(name, host) is alive
