"""The plain loop to compare with: peft adapters, autocast, and a step as diffusers' training example has it.

With `rank` 0 it trains every weight of the UNet, in fp32 under autocast, as the example for that does.
Latents are encoded beforehand, as in the example's fastest variant; captions are encoded at every step.
"""

import copy
import time
from dataclasses import replace

import torch
from peft import LoraConfig
from torch.nn import functional

from sdlora.contracts import Tokens
from sdlora.families.sd1 import StableDiffusion1
from sdlora.families.sdxl import StableDiffusionXL

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def step_seconds(
    family: StableDiffusion1 | StableDiffusionXL, *, batch: int, steps: int, rank: int = 16
) -> list[float]:
    """The seconds of each of `steps` optimizer steps of the plain loop on the family's UNet."""
    family, device = copy.copy(family), family.device
    family.unet = unet = copy.deepcopy(family.unet)  # peft writes into the model
    if rank:
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
        )
    else:
        unet.requires_grad_(True)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    side = family.native_size // family.latent.factor
    latents = [torch.randn(batch, family.latent.channels, side, side) for _ in range(4)]
    ids = family.tokenize(["a photo of a cat"] * batch).ids
    alphas = family.noise.alphas_bar.to(device)
    unet.train()

    def step(number: int) -> None:
        clean = latents[number % 4].to(device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
        noisy = signal * clean + (1 - signal.square()).sqrt() * noise
        with torch.no_grad():
            states = family.encode_text(Tokens(ids.to(device)))
        sizes = family.sizes([(1024, 1024)] * batch, [(0, 0)] * batch, [(1024, 1024)] * batch)
        if sizes is not None:
            states = replace(states, sizes=sizes.to(device))
        with torch.autocast(device.type, family.dtype, enabled=family.dtype != torch.float32):
            prediction = family.predict(noisy, timesteps, states)
        loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.detach().item()  # the example logs it at every step

    seconds = []
    for number in range(steps):
        begin = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - begin)
    return seconds
