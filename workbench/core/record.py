"""Progress of a run and its record: steps, job states, results, records. Stdlib only."""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, overload

from workbench.core.config import SPECS, DragConfig
from workbench.core.errors import BadInput
from workbench.core.request import EditRequest, Point, PointPair

RECORD_FORMAT = 1
ALIKE = 0.5  # likeness (1 = the same) below which a handle's surroundings count as lost
NEAR, NEAR_SHARE = (
    2.0,
    0.1,
)  # arrived: within so many grid px, or that part of the arrow's length
_LARGEST = sys.float_info.max
_SLACK = 1.0  # grid px that a point may be off through rounding at either end


class StopReason(enum.Enum):
    """Why a drag ended; the value is the sentence that the user reads."""

    REACHED = "All points reached their targets."
    STEP_LIMIT = "The step limit was reached before all points arrived; raise it or run on."
    STUCK = "The points stopped moving; try a stronger preset or a larger mask."
    NO_MOTION = "There was nothing to move: every arrow is shorter than the stop distance."
    ONE_STEP = "The picture was moved in one step, without optimisation."


STAGES = {  # in words, for page and command line
    "load": "Loading the model",
    "download": "Downloading",
    "encode": "Reading the picture",
    "look": "Analysing the picture",
    "lora": "Training on your picture",
    "invert": "Analysing the picture",
    "generate": "Generating",
    "sweep": "Running edits",
    "reference": "Recording the original",
    "drag": "Dragging",
    "denoise": "Rendering",
    "decode": "Decoding",
    "save": "Saving",
    "check": "Checking",
}


def stage_label(stage: str) -> str:
    """A stage in words; its name where a newer version wrote it."""
    return STAGES.get(stage, stage.capitalize())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One step of progress in one of the `STAGES`."""

    stage: str
    step: int  # steps finished, 0..total
    total: int
    loss: float | None = None
    points: tuple[Point, ...] | None = None  # handle points now, image pixels
    distances: tuple[float, ...] | None = None  # handle to target, image pixels
    preview: bytes | None = None  # JPEG of the predicted clean picture
    cached: bool = False  # the stage came from the cache
    waiting: bool = False  # another thread or process computes the same; its result is taken
    part: int = 0  # of a job that makes several pictures or edits: which one, from 1
    parts: int = 0  # and of how many
    # Inside the numerics points and distances count in grid pixels (x = column), and this predicts
    # the clean latent; `previews.PreviewRecorder` turns them into image pixels and a preview.
    clean: Callable[[], Any] | None = field(default=None, compare=False, repr=False)


OnStep = Callable[[StepInfo], None]
"""Called after each step; raises `Cancelled` to stop the work."""


def ignore_steps(_info: StepInfo) -> None:
    """The `OnStep` that does nothing."""


class JobState(enum.StrEnum):
    """Life of a job: queued -> running -> one of the four ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def label(self) -> str:
        """The state in a word, for people."""
        return "Finished" if self is JobState.DONE else self.value.capitalize()

    @property
    def ended(self) -> bool:
        """True once the job will not change any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Way(Sequence[tuple[Point, ...]]):
    """The ways of the handles as a record holds them: numbers, which become points when looked at.

    A history of 10,000 edits holds millions of points; as objects they took most of the time and of
    the memory of reading it. Equal to the tuple of tuples of points that it stands for.
    """

    __slots__ = ("_ends", "_numbers")

    def __init__(self, rows: Iterable[Iterable[Sequence[float]]]) -> None:
        """Take [tracking][pair][x, y].

        Raises:
            TypeError, ValueError: for another shape, or what is not a finite number.
        """
        numbers: list[float] = []
        ends = array("L", [0])
        for row in rows:
            for x, y in row:
                numbers += (x, y)
            ends.append(len(numbers))
        self._numbers, self._ends = array("d", _numbers(numbers)), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> tuple[Point, ...]: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[tuple[Point, ...], ...]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return tuple(self[n] for n in range(len(self))[at])
        n = range(len(self))[at]
        row = iter(self._numbers[self._ends[n] : self._ends[n + 1]])
        return tuple(Point(x, y) for x, y in zip(row, row, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class EditResult:
    """Result of a finished edit; pictures are blob ids in the store."""

    image: str  # PNG of the result, at the image's own size
    trajectory: Sequence[tuple[Point, ...]] = ()  # [tracking][pair], image pixels, start first
    distances: tuple[float, ...] = ()  # left to go per pair, image pixels
    change_outside_mask: float = 0.0  # largest absolute change outside the mask, 0..255
    iterations: int = 0
    losses: tuple[float, ...] = ()
    stop: str = StopReason.STEP_LIMIT.name
    seconds: Mapping[str, float] = field(default_factory=dict)  # per stage
    cached: tuple[str, ...] = ()  # stages that came from the cache
    notices: tuple[str, ...] = ()  # sentences for the user (prompt cut, mask proposed, ...)
    strip: str | None = None  # PNG: source with mask and arrows | result
    frames: tuple[str, ...] = ()  # JPEGs of the predicted clean picture during the drag
    # per pair: px from the target to where the handle's surroundings are in the result, and how alike
    # they are there (1 = the same); () in records of version 1
    found: tuple[tuple[float, float], ...] = ()
    # what `auto` delivered ("moved", "draft" or "refined"), why (a code), and the figures behind it
    choice: Mapping[str, Any] = field(default_factory=dict)
    # how well the model knows the picture where it may change: "level" (well, partly, poorly) and figures
    knows: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        data = dataclasses.asdict(self)
        data["trajectory"] = [[[p.x, p.y] for p in row] for row in self.trajectory]
        for name in ("seconds", "choice", "knows"):
            data[name] = dict(getattr(self, name))
        data["found"] = [list(pair) for pair in self.found]
        return data

    @classmethod
    def from_json(cls, data: Any) -> EditResult:
        """Read what `to_json` wrote; unknown keys are dropped.

        Raises:
            BadInput: when `image` is missing or a part has the wrong shape.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("image"), str):
            raise BadInput("An edit result needs at least 'image'.")
        names = {f.name for f in dataclasses.fields(cls)}
        parts = {k: v for k, v in data.items() if k in names}
        try:
            parts["trajectory"] = Way(parts.get("trajectory", ()))
            for name in ("distances", "losses"):
                parts[name] = _numbers(parts.get(name, ()))
            for name in ("cached", "notices", "frames"):
                parts[name] = tuple(_text(v) for v in parts.get(name, ()))
            seconds = dict(parts.get("seconds", {})).items()
            parts["seconds"] = {_text(k): _number(v) for k, v in seconds}
            parts["found"] = tuple(
                (_number(left), _number(alike)) for left, alike in parts.get("found", ())
            )
            for name in ("choice", "knows"):
                parts[name] = {_text(k): _plain(v) for k, v in dict(parts.get(name, {})).items()}
            parts["iterations"] = int(_number(parts.get("iterations", 0)))
            parts["change_outside_mask"] = _number(parts.get("change_outside_mask", 0.0))
            parts["stop"] = _text(parts.get("stop", StopReason.STEP_LIMIT.name))
            if parts.get("strip") is not None:
                _text(parts["strip"])
        except (TypeError, ValueError) as exc:
            raise BadInput(f"The edit result is damaged: {exc}.") from exc
        return cls(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """One edit in the history: what was asked, what came out, with what."""

    id: str  # ULID: sorts by time
    request: EditRequest
    status: JobState
    result: EditResult | None = None
    error: str | None = None
    started: str = ""  # ISO 8601, UTC
    finished: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    format: int = RECORD_FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "format": self.format,
            "id": self.id,
            "status": self.status.value,
            "request": self.request.to_json(),
            "result": self.result.to_json() if self.result else None,
            "error": self.error,
            "started": self.started,
            "finished": self.finished,
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, data: Any) -> EditRecord:
        """Read a record of the current format (`storage/history/folder.py` migrates older ones first).

        Raises:
            BadInput: naming what is wrong.
        """
        if not isinstance(data, Mapping):
            raise BadInput("An edit record must be a JSON object.")
        if data.get("format") != RECORD_FORMAT:
            raise BadInput(
                f"The edit record has format {data.get('format')!r}; this version reads "
                f"{RECORD_FORMAT}. Use a newer workbench.",
                code="newer-format",
            )
        try:
            result = data.get("result")
            return cls(
                id=str(data["id"]),
                status=JobState(data["status"]),
                request=EditRequest.from_json(data["request"], strict=False),
                result=EditResult.from_json(result) if result is not None else None,
                error=None if data.get("error") is None else _text(data["error"]),
                started=str(data.get("started", "")),
                finished=str(data.get("finished", "")),
                environment={
                    _text(k): _text(v) for k, v in dict(data.get("environment", {})).items()
                },
            )
        except (KeyError, ValueError, TypeError) as exc:
            raise BadInput(f"The edit record is damaged: {exc}.", code="damaged") from exc


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        raise TypeError(f"{value!r:.40} is not a finite number")
    return value


def _numbers(values: Iterable[Any]) -> tuple[float, ...]:
    """All of them, each a finite number; told at once where they are floats, as they always are."""
    every = tuple(values)
    if set(map(type, every)) <= {float} and math.isfinite(sum(every)):
        return every
    return tuple(_number(v) for v in every)


def _plain(value: Any) -> str | float | None:
    """A text, a finite number, a truth value or nothing: what `choice` and `knows` hold."""
    return value if value is None or isinstance(value, (str, bool)) else _number(value)


@dataclass(frozen=True, slots=True)
class Converged:
    """One arrow; lengths in image px, to the target as it was drawn.

    `nearest` is how close the handle ever came; `jumps` are the trackings (counted from 1) in which
    it leapt farther than one turn can have moved it: another place was taken for the feature.
    """

    number: int
    length: float
    left: float
    nearest: float
    arrived: bool
    jumps: tuple[int, ...]
    lost: bool = False  # nothing in the result looks like the handle's surroundings

    @property
    def share(self) -> float:
        """Part of the way that was made; 1 for an arrow without length."""
        return 1.0 - self.left / self.length if self.length > 0 else 1.0

    @property
    def sentence(self) -> str:
        """A sentence about a jump or a slip, or nothing."""
        if self.jumps:
            times = f" and {len(self.jumps) - 1} more" if len(self.jumps) > 1 else ""
            return (
                f"Arrow {self.number}: tracking jumped at step {self.jumps[0]}{times}; what was "
                "followed after that may be another thing that looks alike."
            )
        if not self.arrived and self.left > self.nearest + max(2.0, 0.2 * self.length):
            return (
                f"Arrow {self.number} was within {self.nearest:.1f} px of its target and slipped back "
                f"to {self.left:.1f} px."
            )
        return ""


def left_of(pairs: Sequence[PointPair], result: EditResult) -> list[float]:
    """Image px from each target to where the handle's surroundings are in the result.

    Records of version 1 lack that; of them, the last tracked place is taken, or the distance between
    grid points where no way was kept.
    """
    if len(result.found) == len(pairs):
        return [left for left, _ in result.found]
    out = []
    for n, pair in enumerate(pairs):
        way = [row[n] for row in result.trajectory if n < len(row)]
        counted = result.distances[n] if n < len(result.distances) else pair.length
        out.append(way[-1].distance(pair.target) if len(way) > 1 else counted)
    return out


def convergence(
    pairs: Sequence[PointPair], result: EditResult, drag: DragConfig, per_cell: float
) -> list[Converged]:
    """The report of every arrow.

    Args:
        pairs: as they were asked for.
        result: with the tracked positions.
        drag: settings of the run.
        per_cell: image px per grid px.
    """
    reach = drag.stop_distance * per_cell
    done = result.stop == StopReason.REACHED.name
    out = []
    for n, (pair, left) in enumerate(zip(pairs, left_of(pairs, result), strict=True)):
        counted = result.distances[n] if n < len(result.distances) else pair.length
        way = [row[n] for row in result.trajectory if n < len(row)]
        # a picture that is moved in one step is put at the target: nothing came near and slipped back
        tracked = way[1:] if SPECS[drag.method].optimises and not drag.drafts else []
        nearest = min([left, *(p.distance(pair.target) for p in tracked)])
        out.append(
            Converged(
                number=n + 1,
                length=pair.length,
                left=left,
                nearest=nearest,
                arrived=_arrived(result, n, pair, per_cell, done or counted <= reach),
                jumps=_jumps(way, drag, per_cell),
                lost=n < len(result.found) and result.found[n][1] < ALIKE,
            )
        )
    return out


def _arrived(result: EditResult, n: int, pair: PointPair, per_cell: float, tracked: bool) -> bool:
    """True when the handle's surroundings are near enough to the target and still look alike."""
    if n >= len(result.found):
        return tracked
    left, alike = result.found[n]
    return alike >= ALIKE and left <= max(NEAR * per_cell, NEAR_SHARE * pair.length)


def _jumps(way: Sequence[Point], drag: DragConfig, per_cell: float) -> tuple[int, ...]:
    """Trackings after which a point lay farther off than the updates before it can have moved it.

    A turn pulls by at most `max_shift`; a feature that answers twice as strongly is still followed.
    The warped start of `warp` and `auto` is one long step by intention: the first row to the second.
    """
    spec = SPECS[drag.method]
    if not spec.optimises:
        return ()
    updates = drag.updates_per_tracking if spec.reads("updates_per_tracking") else 1
    most = (2 * drag.max_shift * updates + _SLACK) * per_cell
    first = 1 if spec.moves_pixels else 0
    steps = enumerate(pairwise(way[first:]), 1)
    return tuple(k for k, (a, b) in steps if a.distance(b) > most)
