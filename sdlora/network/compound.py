"""Several adapters of one layer that a file holds side by side, such as LoRA and a change of the bias."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from sdlora.contracts import Adapter


class Compound(Adapter):
    """The sum of its parts."""

    kind = "compound"
    suffixes = ()

    def __init__(self, parts: Sequence[Adapter]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self._held = nn.ModuleList(parts)

    def tensors(self) -> dict[str, Tensor]:
        """Those of all parts."""
        return {name: tensor for part in self.parts for name, tensor in part.tensors().items()}

    def delta(self, weight: Tensor) -> Tensor:
        """The sum of the parts' deltas."""
        first, *rest = (part.delta(weight) for part in self.parts)
        return sum(rest, first)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The sum of the parts' changes of the bias."""
        found = [change for part in self.parts if (change := part.bias_delta(bias)) is not None]
        return sum(found[1:], found[0]) if found else None

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """The sum of the parts' changes."""
        first, *rest = (part(x, layer) for part in self.parts)
        total: Tensor = sum(rest, first)
        return total


def together(kinds: Sequence[type[Adapter]], tensors: Mapping[str, Tensor], layer: nn.Module) -> Adapter:
    """The adapter of `layer` that `kinds` read from `tensors`; the first leaves the others theirs."""
    first, *others = kinds
    taken = {name for kind in others for name in kind.suffixes}
    parts = [first.read({n: t for n, t in tensors.items() if n not in taken}, layer)]
    parts += [kind.read({n: t for n, t in tensors.items() if n in kind.suffixes}, layer) for kind in others]
    return parts[0] if not others else Compound(parts)
