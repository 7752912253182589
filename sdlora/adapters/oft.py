"""OFT: a layer's outputs are rotated in blocks, W' = R W with R orthogonal by Cayley's transform.

OFT (Qiu et al. 2023), sec. 3; BOFT (Liu et al. 2023) multiplies butterfly stages of such rotations, each
mixing blocks further apart. In a file `alpha` is no scale but the bound on the rotation's size, as a part of
the outputs. Shapes: m stages, n blocks of b features, O = n b.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS, SPECS, Placement
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError
from sdlora.options import option


@SPECS.register("oft")
@dataclass(frozen=True, kw_only=True)
class OftSpec(Placement):
    """How OFT adapters are made."""

    kind: ClassVar[str] = "oft"

    block: int = option(8, "Outputs that are rotated together, at most", low=2, high=256, level="basic")
    constraint: float = option(
        0.0, "Bound on the size of the rotation, as a part of the outputs; 0 is none", low=0, high=1
    )
    butterfly: bool = option(
        False, "Several stages that mix all blocks (BOFT), for outputs that are a power of two of blocks"
    )


@KINDS.register("oft")
class Oft(Adapter):
    """blocks [n,b,b] or, in a butterfly, [m,n,b,b]; rescale None or [O,1..]."""

    kind = "oft"
    suffixes = ("oft_blocks", "rescale", "alpha")

    def __init__(self, blocks: Tensor, *, constraint: float, rescale: Tensor | None = None) -> None:
        super().__init__()
        self.blocks = nn.Parameter(blocks)
        self.rescale = None if rescale is None else nn.Parameter(rescale)
        self.constraint = constraint

    @classmethod
    def create(cls, layer: nn.Module, spec: OftSpec, generator: torch.Generator) -> "Oft":
        """Rotations by nothing, fp32 on the layer's device; nothing is drawn."""
        weight = layer.get_parameter("weight")
        outputs = weight.shape[0]
        if spec.butterfly:
            size = max((b for b in range(2, spec.block + 1, 2) if outputs % b == 0), default=0)
            # The widest stage pairs halves of blocks, so their number must be a power of two.
            while size and (outputs // size) & (outputs // size - 1):
                size = max((b for b in range(2, size, 2) if outputs % b == 0), default=0)
            if not size:
                raise AdapterError(f"{outputs} outputs cannot be parted for a butterfly.", "Use plain OFT.")
            shape: tuple[int, ...] = ((outputs // size).bit_length(), outputs // size, size, size)
        else:
            size = max(b for b in range(1, spec.block + 1) if outputs % b == 0)
            shape = (outputs // size, size, size)
        return cls(torch.zeros(shape, device=weight.device), constraint=spec.constraint)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Oft":
        """The adapter held by `tensors`."""
        weight = layer.get_parameter("weight")
        blocks, rescale = tensors["oft_blocks"], tensors.get("rescale")
        fits = blocks.ndim in (3, 4) and blocks.shape[-1] == blocks.shape[-2]
        if not fits or blocks.shape[-1] * blocks.shape[-3] != weight.shape[0]:
            raise AdapterError(
                f"oft_blocks has the shape {tuple(blocks.shape)}, the layer {tuple(weight.shape)}."
            )
        if blocks.ndim == 4 and (
            blocks.shape[-1] % 2 or weight.shape[0] % (2 ** (blocks.shape[0] - 1) * blocks.shape[-1])
        ):
            raise AdapterError(f"oft_blocks of the shape {tuple(blocks.shape)} form no butterfly.")
        if rescale is not None:
            if rescale.numel() != weight.shape[0]:
                raise AdapterError(f"rescale has not the {weight.shape[0]} values that the layer needs.")
            rescale = rescale.reshape(-1, *(1 for _ in weight.shape[1:]))
        return cls(blocks, constraint=float(tensors.get("alpha", torch.tensor(0.0))), rescale=rescale)

    def tensors(self) -> dict[str, Tensor]:
        """The blocks, the outputs' factors if any, and the bound as `alpha`."""
        held = {"oft_blocks": self.blocks.detach(), "alpha": torch.tensor(self.constraint)}
        return held if self.rescale is None else held | {"rescale": self.rescale.detach()}

    def delta(self, weight: Tensor) -> Tensor:
        """R W - W: it depends on the weight that is adapted."""
        old = weight.float()
        rotations = self._rotations(weight.device, weight.shape[0])
        if rotations.ndim == 3:
            identity = torch.eye(rotations.shape[-1], device=weight.device)
            parted = old.reshape(*rotations.shape[:2], *old.shape[1:])
            change = torch.einsum("knm,kn...->km...", rotations - identity, parted).reshape(old.shape)
        else:
            change = _butterfly(rotations, old) - old
        if self.rescale is None:
            return change
        factors = self.rescale.to(weight.device, torch.float32)
        return factors * change + (factors - 1) * old

    def _rotations(self, device: torch.device, outputs: int) -> Tensor:
        """(I + Q)(I - Q)^-1 of every block, Q skew-symmetric and bounded."""
        blocks = self.blocks.to(device, torch.float32)
        skew = blocks - blocks.transpose(-1, -2)
        if self.constraint:
            bound = self.constraint * outputs
            skew = skew * (bound / (torch.linalg.vector_norm(skew) + 1e-8).clamp(min=bound))
        identity = torch.eye(blocks.shape[-1], device=device)
        inverse: Tensor = torch.linalg.inv_ex(identity - skew).inverse
        return (identity + skew) @ inverse


def _butterfly(rotations: Tensor, weight: Tensor) -> Tensor:
    """The product of all stages with `weight` [O,...]: stage i pairs half blocks 2^i apart."""
    half = rotations.shape[-1] // 2
    rest = weight.shape[1:]
    for stage, blocks in enumerate(rotations):
        apart = 2**stage * half
        paired = weight.reshape(-1, 2, apart, *rest).transpose(1, 2)
        turned = torch.einsum("kij,kj...->ki...", blocks, paired.reshape(*blocks.shape[:2], *rest))
        weight = turned.reshape(-1, apart, 2, *rest).transpose(1, 2).reshape(-1, *rest)
    return weight
