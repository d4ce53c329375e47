"""Linear equations on a grid of pixels: random walks and as-rigid-as-possible displacements."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_LEAST = 1e-5  # conductance between neighbours of any colour: no cell is cut off altogether


def conductance(rgb: F32, edge: float) -> tuple[F32, F32]:
    """How easily heat passes between vertical and between horizontal neighbours.

    Args:
        rgb: float32 [h, w, 3] in 0..1.
        edge: step in colour (largest channel) that lets 1/e through.

    Returns:
        float32 [h - 1, w] and [h, w - 1], exp(-step / edge).
    """
    down = np.abs(rgb[1:] - rgb[:-1]).max(axis=2)
    right = np.abs(rgb[:, 1:] - rgb[:, :-1]).max(axis=2)
    return np.exp(-down / edge) + np.float32(_LEAST), np.exp(-right / edge) + np.float32(_LEAST)


def solve(
    start: F32,
    free: Mask,
    links: tuple[F32, F32],
    *,
    steps: int,
    source: F32 | None = None,
    absorbed: F32 | None = None,
    tolerance: float = 1e-4,
) -> F32:
    """Solve  sum over neighbours j of c_ij (u_i - u_j) + a_i u_i = s_i  at the free cells.

    Conjugate gradients with the diagonal as preconditioner; fields along leading axes share one
    system, so that they take the same number of steps.

    Args:
        start: float32 [..., h, w]; its values at cells that are not free are the conditions.
        free: bool [h, w].
        links: conductances c between vertical [h - 1, w] and horizontal [h, w - 1] neighbours.
        steps: at most so many.
        source: s, [..., h, w]; 0 when None.
        absorbed: a >= 0, [h, w]; 0 when None.
        tolerance: stop when the preconditioned residual is below it everywhere.

    Returns:
        float32 [..., h, w]; `start` is not written into.
    """
    down, right = links
    total = np.zeros(free.shape, np.float32)
    total[1:] += down
    total[:-1] += down
    total[:, 1:] += right
    total[:, :-1] += right
    if absorbed is not None:
        total += absorbed
    u: F32 = start.astype(np.float32)
    keep = free.astype(np.float32)
    inverse = keep / np.maximum(total, 1e-12)
    buffer = np.empty_like(u)

    def flow(x: F32) -> F32:
        out = total * x
        part = buffer[..., 1:, :]
        np.multiply(down, x[..., :-1, :], out=part)
        out[..., 1:, :] -= part
        np.multiply(down, x[..., 1:, :], out=part)
        out[..., :-1, :] -= part
        part = buffer[..., 1:]
        np.multiply(right, x[..., :-1], out=part)
        out[..., 1:] -= part
        np.multiply(right, x[..., 1:], out=part)
        out[..., :-1] -= part
        out *= keep
        return out

    r = -flow(u)
    if source is not None:
        r += source * keep
    z = r * inverse
    p: F32 = z.astype(np.float32)
    rz = float(np.vdot(r, z))
    for step in range(steps):
        if step % 8 == 0 and float(np.abs(z).max()) < tolerance:
            break
        ap = flow(p)
        length = rz / max(float(np.vdot(p, ap)), 1e-30)
        u += np.float32(length) * p
        ap *= np.float32(length)
        r -= ap
        np.multiply(r, inverse, out=z)
        new = float(np.vdot(r, z))
        p *= np.float32(new / max(rz, 1e-30))
        p += z
        rz = new
    return u
