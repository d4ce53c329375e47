"""How long runs will take, from what earlier edits with the same model took. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from statistics import median

from workbench.core.config import SPECS
from workbench.core.record import EditRecord, EditResult
from workbench.core.request import EditRequest

LOOKED_AT = 60  # newest edits that count


def estimate(
    requests: Sequence[EditRequest],
    records: Sequence[EditRecord],
    *,
    prepared: Callable[[EditRequest], tuple[bool, bool]],
    stages: Collection[str] | None = None,
) -> float | None:
    """Seconds that the requests will take together, at most (a drag may arrive early).

    Args:
        requests: runs, one after the other on one device.
        records: earlier edits, newest first; those with the same model are looked at.
        prepared: whether a request's LoRA and inversion are in the cache already.
        stages: only these count; None for the whole edit.

    Returns:
        None while no finished edit with this model says how fast this machine is.
    """
    names = {r.model.name for r in requests}
    known = [
        (r.request, r.result)
        for r in records
        if r.result is not None and r.request.model.name in names
    ][:LOOKED_AT]
    if not known or not requests:
        return None
    total = 0.0
    trained: set[object] = set()
    inverted: set[object] = set()
    for request in requests:
        has_lora, has_latent = prepared(request)
        lora = (request.image.id, request.prompt, request.lora, request.seed, request.lora_file)
        latent = (*lora, request.inversion)
        own = [k for k in known if k[0].drag.method == request.drag.method] or known
        work: dict[str, tuple[_Known, _Work]] = {}
        if not has_lora and lora not in trained:
            work["lora"] = known, _lora_work
        if latent not in inverted:
            if not has_latent:
                work["invert"] = known, _depth
            # the original's pass is only kept in memory, so it is made again for each sweep
            work["reference"] = known, _depth
        work |= {"drag": (own, _drag_work), "denoise": (own, _depth)}
        work |= {"decode": (known, _once), "save": (known, _once)}
        trained.add(lora)
        inverted.add(latent)
        for stage, (among, how_much) in work.items():
            if stages is None or stage in stages:
                total += _rate(among, stage, how_much, request)
    return total


_Known = Sequence[tuple[EditRequest, EditResult]]
_Work = Callable[[EditRequest, EditResult | None], float]


def _rate(known: _Known, stage: str, work: _Work, request: EditRequest) -> float:
    """Median seconds per unit of work of a stage, times the request's work."""
    rates = [
        result.seconds[stage] / work(made, result)
        for made, result in known
        if stage in result.seconds and stage not in result.cached and work(made, result) > 0
    ]
    return median(rates) * work(request, None) if rates else 0.0


def _lora_work(request: EditRequest, _result: EditResult | None) -> float:
    return float(request.lora.steps * request.lora.batch_size * request.lora.accumulation)


def _depth(request: EditRequest, _result: EditResult | None) -> float:
    return float(request.inversion.inverted_steps)


def _drag_work(request: EditRequest, result: EditResult | None) -> float:
    """Steps of motion supervision; a warp has one move, whatever its settings say."""
    if not SPECS[request.drag.method].optimises:
        return 1.0
    return float(result.iterations if result is not None else request.drag.steps)


def _once(_request: EditRequest, _result: EditResult | None) -> float:
    return 1.0
