"""Files that sd-scripts wrote give the deltas that it gives, on every layer of models of true size."""

import json
import os
from pathlib import Path

import pytest
import torch

from sdlora.network.codec import AdapterFile
from sdlora.network.names import to_sgm
from tests.network import oracle

FOLDER = os.environ.get("SDLORA_FIXTURES", "")
FILES = {
    "kohya-sd15-r2": (oracle.sd15, 192 + 72),
    "kohya-sd15-locon-r1": (oracle.sd15, 350),
    "kohya-sdxl-r1": (oracle.sdxl, 1014),
}


@pytest.mark.skipif(not FOLDER, reason="SDLORA_FIXTURES names no folder of adapter files")
@pytest.mark.parametrize("name", FILES)
def test_every_layer_of_sd_scripts_files_matches(name: str) -> None:
    make, count = FILES[name]
    facts = json.loads((Path(FOLDER) / f"{name}.json").read_text())
    file = AdapterFile.open(Path(FOLDER) / f"{name}.safetensors")
    resolved = file.resolve(make())
    assert len(resolved.adapters) == count == len(facts) and not resolved.unmatched
    assert file.detected.family == make().name and file.detected.certain
    left = dict(facts)
    for layer, adapter in resolved.adapters.items():
        flat = layer.path.replace(".", "_")
        text = flat if flat.startswith("text_model_") else f"text_model_{flat}"
        stems = {
            "unet": (f"lora_unet_{flat}", f"lora_unet_{to_sgm(flat)}"),
            "text_encoder": (f"lora_te_{text}", f"lora_te1_{text}"),
            "text_encoder_2": (f"lora_te2_{text}",),
        }[layer.component]
        fact = next(left.pop(stem) for stem in stems if stem in left)
        delta = adapter.delta(torch.empty(fact["shape"])).detach()
        norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        flattened = delta.flatten()
        # Their norms were summed up in fp32 and are up to 0.3 % too low; single values are good to 1e-6.
        assert norm == pytest.approx(fact["norm"], rel=4e-3)
        assert flattened[:3].tolist() == pytest.approx(fact["first"], rel=1e-5)
        assert float(flattened[-1]) == pytest.approx(fact["last"], rel=1e-5)
    assert not left
