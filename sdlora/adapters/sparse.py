"""Single values of a weight's change, kept by their places: what LyCORIS' extraction leaves beside LoRA.

Its low-rank part misses something; the largest values of that may follow it (`--use_sparse_bias`). Read
only. Shapes: n values, O I features, k kernel.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdlora.adapters import KINDS
from sdlora.contracts import Adapter
from sdlora.errors import AdapterError


@KINDS.register("sparse")
class Sparse(Adapter):
    """values [n] at places [2,n]: rows and columns of the weight as a matrix of `size` (O, I*k*k)."""

    kind = "sparse"
    suffixes = ("bias_values", "bias_indices", "bias_size")

    def __init__(self, values: Tensor, places: Tensor, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("places", places)
        self.size = size

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layer: nn.Module) -> "Sparse":
        """The values held by `tensors`."""
        if missing := [name for name in cls.suffixes if name not in tensors]:
            raise AdapterError(f"{missing[0]} is missing.")
        values, places, size = (tensors[name] for name in cls.suffixes)
        weight = layer.get_parameter("weight")
        matrix = (len(weight), weight[0].numel())
        if size.numel() != 2 or tuple(size.flatten().tolist()) != matrix:
            raise AdapterError(
                f"bias_size has not the {matrix[0]} x {matrix[1]} values that the layer needs."
            )
        if places.shape != (2, values.numel()):
            raise AdapterError(f"bias_indices are no places of {values.numel()} values.")
        if bool((places < 0).any()) or bool((places >= torch.tensor(matrix)[:, None]).any()):
            raise AdapterError("bias_indices lead out of the layer's weight.")
        return cls(values.flatten(), places.long(), size=matrix)

    def tensors(self) -> dict[str, Tensor]:
        """The values, detached, and where they stand."""
        places, size = self.get_buffer("places").int(), torch.tensor(self.size, dtype=torch.int32)
        return {"bias_values": self.values.detach(), "bias_indices": places, "bias_size": size}

    def delta(self, weight: Tensor) -> Tensor:
        """The values at their places, and zero elsewhere."""
        matrix = torch.zeros(self.size, device=weight.device)
        places = tuple(self.get_buffer("places").to(weight.device))
        values = self.values.to(weight.device, torch.float32)
        return matrix.index_put(places, values, accumulate=True).reshape(weight.shape)
