"""The order in which waiting jobs are taken: owners in turn, quick jobs before long ones."""

from __future__ import annotations

import copy
from collections import deque

PASSES = 3  # quick jobs that may pass a waiting long one before it is taken


class Turns:
    """Waiting job ids. Nobody waits for another owner's whole queue, and no long job starves."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._quick: dict[str, deque[str]] = {}  # owner -> ids; the first owner is next
        self._long: dict[str, deque[str]] = {}
        self._passed = 0

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return sum(len(q) for lane in (self._quick, self._long) for q in lane.values())

    def count(self, owner: str) -> int:
        """Number of waiting jobs of an owner."""
        return sum(len(lane.get(owner, ())) for lane in (self._quick, self._long))

    def add(self, job_id: str, owner: str, *, quick: bool = False, first: bool = False) -> None:
        """Queue a job behind its owner's; `first` puts it, and its owner, before all others."""
        lane = self._quick if quick else self._long
        if not first:
            lane.setdefault(owner, deque()).append(job_id)
            return
        mine = lane.pop(owner, deque())
        mine.appendleft(job_id)
        others = dict(lane)
        lane.clear()
        lane.update({owner: mine, **others})

    def remove(self, job_id: str) -> None:
        """Forget a job; does nothing when it does not wait."""
        for lane in (self._quick, self._long):
            for owner, queue in list(lane.items()):
                if job_id in queue:
                    queue.remove(job_id)
                if not queue:
                    del lane[owner]

    def take(self) -> str:
        """Remove and return the next job; its owner goes to the end of the line.

        Raises:
            IndexError: when nothing waits.
        """
        if not self:
            raise IndexError("no job is waiting")
        long = bool(self._long) and (not self._quick or self._passed >= PASSES)
        self._passed = 0 if long or not self._long else self._passed + 1
        lane = self._long if long else self._quick
        owner = next(iter(lane))
        queue = lane.pop(owner)
        job_id = queue.popleft()
        if queue:
            lane[owner] = queue
        return job_id

    def order(self) -> list[str]:
        """Ids in the order in which `take` would return them."""
        rest = copy.deepcopy(self)
        return [rest.take() for _ in range(len(rest))]

    def clear(self) -> None:
        """Forget all."""
        self._quick.clear()
        self._long.clear()
