"""The plain loop to compare with: peft adapters, autocast, and a step as diffusers' training example has it.

Its latents are encoded beforehand, as in the example's fastest variant; captions are encoded at every step.
"""

import time

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn import functional

from sdlora.contracts import Family, Tokens

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def steps_per_second(family: Family, *, batch: int, warm_up: int, steps: int, rank: int = 16) -> float:
    """Optimizer steps a second of the plain loop on the family's UNet."""
    unet, device = family.components["unet"], family.device
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )
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
            states = states.with_sizes(sizes.to(device))
        with torch.autocast(device.type, family.dtype, enabled=family.dtype != torch.float32):
            prediction = family.predict(noisy, timesteps, states)
        loss = functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.detach().item()  # the example logs it at every step

    for number in range(warm_up):
        step(number)
    begin = time.perf_counter()
    for number in range(steps):
        step(number)
    seconds = time.perf_counter() - begin
    assert get_peft_model_state_dict(unet)
    unet.delete_adapters("default")
    unet.requires_grad_(False).eval()
    return steps / seconds
