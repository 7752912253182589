"""The training step: micro-batches in, moved adapters out, nothing asked of the host.

`accumulate` and `update` are functions on static tensors: every tensor that outlives a call keeps its
address, there is no copy to the host and no branch on a value. They run as they stand, or captured as CUDA
graphs. A loss or gradient that is not finite leaves all weights and the optimizer as they were, which the
device decides by itself: clipping, loss scale and leaving out are two scalars handed to the fused optimizer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sdlora.config import TrainConfig
from sdlora.contracts import Conditioning, Family, Objective, OptimizerSpec, Step, Tokens
from sdlora.errors import RunError
from sdlora.network.attach import Network
from sdlora.training.ema import Ema
from sdlora.training.scale import LossScale


class OptimizerStep(Protocol):
    """What runs as it stands or captured: `accumulate` for each micro-batch, `exchange`, `update`."""

    family: Family
    working: Network

    def accumulate(self, step: Step) -> None: ...
    def exchange(self) -> None: ...
    def update(self) -> None: ...
    def forget(self) -> None: ...
    def tensors(self) -> list[Tensor]: ...


def run(step: OptimizerStep, micro_batches: Iterable[Step]) -> None:
    """One optimizer step, call by call."""
    for micro_batch in micro_batches:
        step.accumulate(micro_batch.map(lambda part: part.to(step.family.device, non_blocking=True)))
    step.exchange()
    step.update()


class Slope(NamedTuple):
    """A part of the step's loss [], and its gradients by the leaves."""

    loss: Tensor
    gradients: tuple[Tensor, ...]


class TrainStep:
    """The optimizer step of `network`, whose `working` form must be attached to `family` while it runs."""

    def __init__(self, family: Family, network: Network, config: TrainConfig) -> None:
        self.family = family
        self.config = config
        self.parameters = dict(network.named_parameters())
        self.working = network.computing_in(family.dtype)
        self._masters: list[Tensor] = list(self.parameters.values())
        self.leaves: list[Tensor] = list(self.working.parameters())
        # gradient and loss in one piece, which several processes `share` for its mean before the update
        self.sums, self._grads = _flat(self._masters, more=1)
        self._gradient, self._loss = self.sums[:-1], self.sums[-1]
        self.share: Callable[[Tensor], None] = lambda sums: None
        # the parts in which a micro-batch is computed: one, or as many as there are cores
        self.slopes: Callable[[Step], Iterable[Slope]] = lambda step: [self.slope(step)]
        # gradients of another number format arrive here, in one copy for all
        self._arrived, self._arrivals = _flat(self._masters if self.working is not network else [])
        self.optimizer = _optimizer(network, config.optimizer, self._grads)
        self.ema = Ema(list(self.parameters.values()), decay=config.loop.ema) if config.loop.ema else None
        self.loss_scale = LossScale(family.device) if family.dtype == torch.float16 else None
        # loss, norm of the gradient before clipping, and 1 where the step was left out
        self.result = torch.zeros(3, device=family.device)
        self._objective: Objective = config.objective
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]

    @torch.no_grad()
    def refresh(self) -> None:
        """What the layers compute with is what was learned so far."""
        if self._arrivals:
            torch._foreach_copy_(self.leaves, self._masters)

    def prepare(self, step: int, *, lr_factor: float) -> float:
        """The numbers of `step` lie where the device reads them. Returns the UNet's learning rate."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"].fill_(peak * lr_factor)
        if self.ema is not None:
            self.ema.prepare(step)
        return self._peaks[0] * lr_factor

    def exchange(self) -> None:
        """Loss and gradient are the means of those of all processes."""
        self.share(self.sums)

    def accumulate(self, step: Step) -> None:
        """The gradient of the mean loss of `step` is added to that of the optimizer step."""
        self.refresh()
        for slope in self.slopes(self.aimed(step, self.working)):
            self.collect(slope)

    def aimed(self, step: Step, working: Network) -> Step:
        """`step` with the base's own answer as its target where that is to be kept.

        `working` are the adapters that the base has on it.
        """
        if not step.keeps:
            return step
        with torch.no_grad(), working.silenced():
            return step._replace(target=self._objective.prediction(self.family, self._conditioned(step)))

    def slope(self, step: Step) -> Slope:
        """The slope of the mean loss of `step`. Changes nothing, so that threads may ask at once."""
        loss = self.counted(self.losses(step))
        gradients = torch.autograd.grad(self.scaled(loss), self.leaves, materialize_grads=True)
        return Slope(loss.detach(), gradients)

    def losses(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return self._objective.loss(self.family, self._conditioned(step))

    def counted(self, losses: Tensor) -> Tensor:
        """What the mean of `losses` is of the optimizer step's loss []."""
        return losses.mean() / self.config.loop.accumulate

    def scaled(self, loss: Tensor) -> Tensor:
        """What is to be differentiated for `loss`."""
        return loss if self.loss_scale is None else loss * self.loss_scale.value

    def collect(self, slope: Slope) -> None:
        """The slope is added to that of the optimizer step."""
        self._loss += slope.loss
        if self._arrivals:
            torch._foreach_copy_(self._arrivals, slope.gradients)
            self._gradient += self._arrived
        else:
            torch._foreach_add_(self._grads, slope.gradients)

    def update(self) -> None:
        """The adapters are moved along the gradient, which is zero again; `result` tells what happened."""
        norm = torch.linalg.vector_norm(self._gradient)
        divisor = torch.ones_like(norm)
        if self.loss_scale is not None:
            norm, divisor = norm / self.loss_scale.value, self.loss_scale.value
        clip = self.config.loop.clip
        skipped = (~(norm + self._loss).isfinite()).float()
        # torch's fused optimizers divide by the one and leave everything as it was where the other is 1
        self.optimizer.grad_scale = divisor / (clip / (norm + 1e-6)).clamp(max=1) if clip else divisor  # type: ignore[attr-defined]  # known to fused optimizers only
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as above
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        if self.loss_scale is not None:
            self.loss_scale.update(skipped)
        self.result.copy_(torch.stack([self._loss, norm, skipped]))
        self.forget()

    def forget(self) -> None:
        """No gradient is accumulated."""
        self.sums.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; filling these tensors restores it."""
        held = {f"weight/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                held[f"optimizer/{key}/{name}"] = value
        if self.ema is not None:
            held |= {f"ema/{n}": a for n, a in zip(self.parameters, self.ema.average, strict=True)}
        if self.loss_scale is not None:
            held |= {"scale/value": self.loss_scale.value, "scale/successes": self.loss_scale.successes}
        return held

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Everything is as it was when `state` was taken. Raises RunError when it is not of such a run."""
        own = self.state()
        if set(own) != set(state) or any(own[name].shape != state[name].shape for name in own):
            raise RunError("The checkpoint belongs to other adapters.", "Begin a new run.")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def tensors(self) -> list[Tensor]:
        """Everything that `accumulate` and `update` change."""
        return [*self.state().values(), self.sums, self.result]

    def _conditioned(self, step: Step) -> Step:
        return step._replace(conditioning=self._conditioning(step), tokens=None, sizes=None)

    def _conditioning(self, step: Step) -> Conditioning:
        if step.conditioning is not None:
            conditioning = step.conditioning
        else:
            assert step.tokens is not None
            conditioning = self.family.encode_text(Tokens(step.tokens), clip_skip=self.config.base.clip_skip)
        return conditioning if step.sizes is None else dataclasses.replace(conditioning, sizes=step.sizes)


def _flat(like: Sequence[Tensor], *, more: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Zeros, fp32 in one stretch of memory, and the parts of it that have the shapes of `like`.

    `more` numbers follow those parts.
    """
    sizes = [tensor.numel() for tensor in like]
    whole = torch.zeros(sum(sizes) + more, device=like[0].device if like else None)
    parts = torch.split(whole[: sum(sizes)], sizes)
    return whole, [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _optimizer(network: Network, spec: OptimizerSpec, grads: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of gradients `grads` with its whole state, so that a captured step need not make it."""
    device = grads[0].device
    parts = [
        ("unet", network.parameters_of("unet"), spec.lr),
        ("text", network.text_parameters, spec.text_lr),
    ]
    groups = [{"name": name, "params": found, "lr": lr} for name, found, lr in parts if found]
    optimizer = spec.build(groups, device=device)
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        parameter.grad = grad
    # a first step that is left out makes the state and moves nothing
    optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]  # known to fused optimizers only
    optimizer.step()
    return optimizer
