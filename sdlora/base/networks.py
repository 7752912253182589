"""Networks built from a configuration and given their weights, every tensor used once and none left."""

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.base.files import Config, ModelFiles, check_unet
from sdlora.errors import ModelError
from sdlora.noise import Prediction

Network = TypeVar("Network", bound=nn.Module)


def load_unet(files: ModelFiles, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The frozen UNet. Raises ModelError when it is no text-to-image one or tensors are missing."""
    config = files.config("unet")
    check_unet(config, files.path)
    unet = hollow(UNet2DConditionModel, config)
    return filled(unet, placed(files, "unet", device, dtype), what=f"the UNet of {files.path}")


def load_text_encoder(
    files: ModelFiles, component: str, *, device: torch.device, dtype: torch.dtype
) -> CLIPTextModel:
    """The frozen text encoder without a projection of its pooled output."""
    config = CLIPTextConfig.from_dict(dict(files.config(component)))
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    tensors = (
        (name.removeprefix("text_model."), tensor)
        for name, tensor in placed(files, component, device, dtype)
        if not name.endswith(("position_ids", "text_projection.weight"))
    )
    encoder = filled(encoder, tensors, what=f"the {component} of {files.path}")
    _number_positions(encoder, config, device)
    return encoder


def load_projected_text_encoder(
    files: ModelFiles, component: str, *, device: torch.device, dtype: torch.dtype
) -> CLIPTextModelWithProjection:
    """The frozen text encoder with the projection of its pooled output."""
    config = CLIPTextConfig.from_dict(dict(files.config(component)))
    with torch.device("meta"):
        encoder = CLIPTextModelWithProjection(config)
    tensors = (
        pair for pair in placed(files, component, device, dtype) if not pair[0].endswith("position_ids")
    )
    encoder = filled(encoder, tensors, what=f"the {component} of {files.path}")
    _number_positions(encoder.text_model, config, device)
    return encoder


def encode(encoder: CLIPTextModel | CLIPTextModelWithProjection, ids: Tensor) -> Any:  # Any: its own
    """What the text encoder answers to ids [N,77], with the states of all layers [N,77,D]; differentiable.

    The mask that hides later tokens is given to it: without one transformers (5.17) leaves hiding them to the
    attention kernel, but not while a step is recorded as a CUDA graph, and two kernels round differently.
    """
    count, length = ids.shape
    later = torch.full((length, length), -torch.inf, device=ids.device, dtype=encoder.dtype).triu(1)
    return encoder(ids, attention_mask=later.expand(count, 1, -1, -1), output_hidden_states=True)


@torch.no_grad()
def measured_prediction(
    unet: nn.Module, config: Config, *, device: torch.device, dtype: torch.dtype
) -> Prediction:
    """What the UNet predicts, found by asking it for the noise in what is almost nothing else.

    At the last timestep an epsilon-predicting UNet gives its input back, and a v-predicting one the
    negative of a picture that it makes up.
    """
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    nothing = torch.zeros(1, 77, int(config["cross_attention_dim"]), device=device, dtype=dtype)
    output = unet(noise, torch.tensor([999], device=device), nothing, return_dict=False)[0]
    likeness = torch.cosine_similarity(output.float().flatten(), noise.float().flatten(), dim=0)
    return "epsilon" if likeness > 0.5 else "v_prediction"


def hollow(kind: Any, config: Config) -> nn.Module:  # Any: diffusers' classes are untyped
    """A network of diffusers' class `kind` whose tensors have no content yet."""
    with torch.device("meta"):
        return cast(nn.Module, kind.from_config(dict(config)))


def placed(
    files: ModelFiles, component: str, device: torch.device, dtype: torch.dtype
) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in files.tensors(component):
        yield name, tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def filled(network: Network, tensors: Iterable[tuple[str, Tensor]], *, what: str) -> Network:
    """`network`, made without content, holds `tensors`, frozen and in evaluation mode."""
    given = dict(tensors)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for reason, names in (
        ("lacks", wanted.keys() - given.keys()),
        ("holds the unknown", given.keys() - wanted.keys()),
        ("has the wrong size of", {n for n in wanted.keys() & given.keys() if wanted[n] != given[n].shape}),
    ):
        if names:
            raise ModelError(
                f"{what[0].upper()}{what[1:]} {reason} {len(names)} of {len(wanted)} tensors, "
                f"for example {min(names)}.",
                "Its configuration and its weights do not belong together: copy or download the model again.",
            )
    network.load_state_dict(given, assign=True)
    return network.requires_grad_(False).eval()


def _number_positions(encoder: nn.Module, config: CLIPTextConfig, device: torch.device) -> None:
    # a buffer that is not among the weights, hence still without content
    positions = torch.arange(config.max_position_embeddings, device=device)
    encoder.get_submodule("embeddings").position_ids = positions[None]
