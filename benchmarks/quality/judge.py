"""The judge: a small network that says which subject and which style a picture shows.

Trained by `recipes/builtin_base` on every icon set, those that the base never saw included, and on
the drawn character. Pictures [B,3,H,H] in [-1,1] go in; logits over `subjects` and `styles` come
out. Its files are `judge.safetensors` (fp16) and, in the metadata of it, the names.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


class Residual(nn.Module):
    """Two convolutions around which the input passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(features + self.inner(features))


class Judge(nn.Module):
    """Five halvings of the picture, then its mean and its maximum, then two linear heads."""

    def __init__(self, channels: tuple[int, ...], subjects: int, styles: int) -> None:
        super().__init__()
        a, b, c, d = channels
        self.body = nn.Sequential(
            *_halving(3, a), *_halving(a, b), Residual(b), *_halving(b, c), Residual(c),
            *_halving(c, d), Residual(d),
        )  # fmt: skip
        self.subject = nn.Linear(2 * d, subjects)
        self.style = nn.Linear(2 * d, styles)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B,subjects] and [B,styles] of pixels [B,3,H,H] in [-1,1]."""
        features = self.body(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return self.subject(pooled), self.style(pooled)


@dataclass(frozen=True, kw_only=True)
class Jury:
    """A trained judge and the names that its answers stand for."""

    judge: Judge
    subjects: tuple[str, ...]
    styles: tuple[str, ...]

    def _logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of pictures on any device, on the CPU."""
        with torch.no_grad():
            subjects, styles = self.judge(pixels.to(self.judge.subject.weight.device))
        return subjects.float().cpu(), styles.float().cpu()

    def ranks(self, pixels: torch.Tensor, subjects: list[str]) -> torch.Tensor:
        """[B] place of each picture's true subject among all, 0 the best."""
        logits = self._logits(pixels)[0]
        true = torch.tensor([self.subjects.index(s) for s in subjects])
        return (logits > logits.gather(1, true[:, None])).sum(1)

    def styles_of(self, pixels: torch.Tensor) -> list[str]:
        """The likeliest style of each picture."""
        return [self.styles[i] for i in self._logits(pixels)[1].argmax(1).tolist()]

    def subjects_of(self, pixels: torch.Tensor) -> list[str]:
        """The likeliest subject of each picture."""
        return [self.subjects[i] for i in self._logits(pixels)[0].argmax(1).tolist()]


def save(jury: Jury, path: Path) -> None:
    """The judge is in one fp16 file with its names."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in jury.judge.state_dict().items()}
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    channels = [m.out_channels for m in jury.judge.body if isinstance(m, nn.Conv2d)]
    names = {"channels": channels, "subjects": jury.subjects, "styles": jury.styles}
    save_file(tensors, path, metadata={k: json.dumps(v) for k, v in names.items()})


def load(path: Path, device: torch.device | str = "cpu") -> Jury:
    """The judge that `save` wrote, in float32, ready to judge."""
    with safe_open(path, "pt") as file:
        names = {key: json.loads(value) for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    judge = Judge(tuple(names["channels"]), len(names["subjects"]), len(names["styles"]))
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return Jury(
        judge=judge.eval().to(device), subjects=tuple(names["subjects"]), styles=tuple(names["styles"])
    )


def _halving(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
