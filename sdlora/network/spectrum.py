"""Singular values of deltas, and the best adapter of a given rank (Eckart & Young 1936).

A product of thin factors is never multiplied out: QR of both, then the SVD of a small square, which gives
the same in a thousandth of the time. Shapes: r rank, O I features of the flattened layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdlora.adapters.lora import Lora


class Spectrum(NamedTuple):
    """u [O,k], singular values s [k] falling, v [I,k]: the matrix is u * s @ v.T.

    `energy` is the squared norm of the whole matrix, also where only the first k are held.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    energy: float

    def lora(self, rank: int, shape: Sequence[int]) -> Lora:
        """The best adapter of that rank, for a weight of `shape`; its scale is 1."""
        root = self.s[:rank].sqrt()
        up, down = self.u[:, :rank] * root, (self.v[:, :rank] * root).T
        outputs, inputs, *kernel = shape
        ones = [1 for _ in kernel]
        rank = len(root)
        return Lora(
            down.reshape(rank, inputs, *kernel).contiguous(),
            up.reshape(outputs, rank, *ones).contiguous(),
            alpha=float(rank),
        )

    def kept(self, rank: int) -> float:
        """The energy of the first `rank` singular values."""
        return float(self.s[:rank].double().square().sum())


def of_product(up: Tensor, down: Tensor) -> Spectrum:
    """The spectrum of up [O,r] @ down [r,I], exact."""
    q_up, r_up = torch.linalg.qr(up.float())
    q_down, r_down = torch.linalg.qr(down.float().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Spectrum(q_up @ u, s, q_down @ vh.T, float(s.double().square().sum()))


def of_matrix(matrix: Tensor, rank: int) -> Spectrum:
    """The first `rank` singular values of a matrix [O,I], by random projection (Halko et al. 2011).

    Equal arguments give equal bits.
    """
    matrix = matrix.float()
    smaller = min(matrix.shape)
    wanted = min(rank + 16, smaller)
    if 3 * wanted > smaller:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.T
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=wanted, niter=6)
    energy = float(torch.linalg.vector_norm(matrix, dtype=torch.float64) ** 2)
    return Spectrum(u[:, :rank], s[:rank], v[:, :rank], energy)


def of_lora(lora: Lora) -> Spectrum:
    """The spectrum of an adapter's delta."""
    down = whole_down(lora).flatten(1)
    return of_product(lora.up.detach().float().flatten(1) * lora.scale, down)


def whole_down(lora: Lora) -> Tensor:
    """`down` [r,I...] in fp32, with a Tucker core multiplied in."""
    down = lora.down.detach().float()
    if lora.mid is None:
        return down
    return torch.einsum("ab...,bi->ai...", lora.mid.detach().float(), down.flatten(1))


def rank_for(s: Tensor, *, energy: float = 1.0, ratio: float = 0.0) -> int:
    """The smallest rank that keeps the part `energy` of the squared singular values and all those
    above s[0] / ratio (0: no such limit); at least 1.
    """
    shares = s.double().square().cumsum(0) / s.double().square().sum().clamp(min=1e-30)
    by_energy = int((shares < energy - 1e-12).sum()) + 1 if energy < 1 else len(s)
    by_ratio = int((s > s[0] / ratio).sum()) if ratio else len(s)
    return max(1, min(by_energy, by_ratio, len(s)))
