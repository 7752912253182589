"""Rotations as others keep them: made ones of the outputs (`oft_diag`), and PEFT's of the inputs (`oft_R`).

LyCORIS first kept R itself: W' = R.T W by blocks of outputs. PEFT's OFT turns what a layer reads, W' = W R.T
by blocks of inputs, and makes R of the upper triangle of a skew-symmetric Q by Cayley's transform or by the
first terms of a Neumann series (Qiu et al. 2025). Read only; `oft` is what is trained. Shapes: n blocks of
b features, O I features, k kernel.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError

_TERMS = 5  # of the series, where PEFT's configuration is silent


@KINDS.register("rotation")
class Rotation(Adapter):
    """rotations [n,b,b], or [1,b,b] shared by all blocks; `held` are the tensors of the file."""

    kind = "rotation"
    suffixes = ("oft_diag", "oft_R.weight", "cayley_terms")

    def __init__(self, rotations: Tensor, *, on_input: bool, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.rotations = nn.Parameter(rotations)
        self.on_input = on_input
        self._held = dict(held)

    @classmethod
    def recognises(cls, suffixes: frozenset[str]) -> bool:
        """Either form; beside PEFT's, its configuration may tell how many terms were used."""
        return suffixes in ({"oft_diag"}, {"oft_R.weight"}, {"oft_R.weight", "cayley_terms"})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Rotation":
        """The adapter held by `tensors`."""
        weight = layer.get_parameter("weight")
        on_input = "oft_diag" not in tensors
        if on_input:
            terms = float(tensors.get("cayley_terms", torch.tensor(_TERMS)))
            if not 0 <= terms <= 64:
                raise AdapterError(f"A series of {terms:g} terms makes no rotation.")
            rotations = _cayley(_skew(tensors["oft_R.weight"].float()), int(terms))
        else:
            rotations = tensors["oft_diag"].float()
        features = weight[0].numel() if on_input else weight.shape[0]
        sound = rotations.ndim == 3 and rotations.shape[1] == rotations.shape[2] and 0 not in rotations.shape
        turned = rotations.shape[0] * rotations.shape[-1] if sound else 0
        shared = sound and on_input and len(rotations) == 1 and features % rotations.shape[-1] == 0
        if turned != features and not shared:
            raise AdapterError(
                f"Its blocks {tuple(rotations.shape)} do not part the layer's {features} features."
            )
        return cls(rotations, on_input=on_input, held=tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Those of the file."""
        return dict(self._held)

    def delta(self, weight: Tensor) -> Tensor:
        """W R.T - W or R.T W - W: it depends on the weight that is adapted."""
        old, rotations = weight.float(), self.rotations.to(weight.device, torch.float32)
        size = rotations.shape[-1]
        turn = rotations - torch.eye(size, device=weight.device)
        if self.on_input:
            parted = old.reshape(len(old), -1, size)
            change = torch.einsum("okj,kij->oki", parted, turn.expand(parted.shape[1], -1, -1))
        else:
            change = torch.einsum("knm,kni->kmi", turn, old.reshape(len(turn), size, -1))
        return change.reshape(weight.shape)


def _skew(triangles: Tensor) -> Tensor:
    """Skew-symmetric [n,b,b] of upper triangles [n,b(b-1)/2], row by row."""
    size = (1 + math.isqrt(1 + 8 * triangles.shape[-1])) // 2
    if triangles.ndim != 2 or size * (size - 1) // 2 != triangles.shape[1] or size < 2:
        raise AdapterError(f"oft_R of the shape {tuple(triangles.shape)} holds no triangles.")
    upper = triangles.new_zeros(len(triangles), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    upper[:, rows, columns] = triangles
    return upper - upper.transpose(1, 2)


def _cayley(skew: Tensor, terms: int) -> Tensor:
    """(I - Q)(I + Q)^-1 for 0 terms, else PEFT's series, which is that of -Q: I + 2Q + 2Q^2 + ... + Q^n."""
    identity = torch.eye(skew.shape[-1]).expand_as(skew)
    if not terms:
        inverse: Tensor = torch.linalg.inv_ex(identity + skew).inverse
        return (identity - skew) @ inverse
    last = terms - 1 if terms < 3 else max(terms, 4) - 1  # as PEFT counts: 3 terms are 4
    total, power = identity.clone(), identity
    for number in range(1, last + 1):
        power = power @ skew
        total = total + power * (2.0 if number < max(last, 2) else 1.0)
    return total
