"""Whatever a file holds, reading it ends in an adapter or in one AdapterError."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdlora.errors import AdapterError
from sdlora.network.container import write
from sdlora.network.info import inspect
from sdlora.network.measure import conflict
from sdlora.network.merge import merge
from sdlora.network.profile import profile
from sdlora.network.resize import resize
from sdlora.network.stack import Entry, Patch
from tests.conftest import TinyModel
from tests.network.test_stack import saved

ROUNDS = 60
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SUFFIXES = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "diff_b"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a"),
    *("lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale", "weight"),
    *("on_input", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "w_norm", "b_norm"),
    *("ia3_l", "oft_diag", "oft_R.weight", "cayley_terms", "lora_magnitude_vector"),
)
WORDS = ("emb_params", "clip_l", "clip_g", "bundle_emb.zwx.emb_params", "bundle_emb.zwx.string_to_param.*")
TOLD = ("r", "lora_alpha", "use_rslora", "alpha_pattern", "feedforward_modules", "num_cayley_neumann_terms")
VALUES = (0.0, 1.0, -1.0, 3.0, 1e9, float("inf"), float("nan"))


@pytest.fixture(scope="module")
def sound(tiny_sd1: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file that can be read."""
    path = tmp_path_factory.mktemp("sound") / "x.safetensors"
    return saved(tiny_sd1.family, path, targets="attn2.to_k", rank=1).read_bytes()


def damaged(sound: bytes, draw: random.Random) -> bytes:
    """The file with some bytes changed, taken away or added, mostly in its header."""
    content = bytearray(sound)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(header if draw.random() < 0.8 else len(content))
        match draw.randrange(4):
            case 0:
                content[place] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randint(1, 40)]
            case 2:
                content[place:place] = draw.randbytes(draw.randint(1, 40))
            case _:
                content[place : place + 1] = draw.choice([b"9", b"-", b'"', b"[", b"}", b"e999", b"null"])
    return bytes(content)


def survives(path: Path, tiny_sd1: TinyModel) -> None:
    """Opening, inspecting, resolving and applying end well or in AdapterError."""
    patch = Patch(tiny_sd1.family)
    calls: tuple[Callable[[], object], ...] = (
        lambda: inspect(path),
        lambda: patch.apply([Entry(path)]),
    )
    for call in calls:
        try:
            call()
        except AdapterError as error:
            assert error.message and "Traceback" not in str(error)
    patch.restore()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed: int, sound: bytes, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        (tmp_path / "x").write_bytes(damaged(sound, draw))
        survives(tmp_path / "x", tiny_sd1)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes(seed: int, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        (tmp_path / "x").write_bytes(draw.randbytes(draw.randint(0, 200)))
        survives(tmp_path / "x", tiny_sd1)


@pytest.mark.parametrize("seed", range(8))
def test_sound_files_of_senseless_tensors(seed: int, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    draw = random.Random(seed)
    dtypes = (torch.float32, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn)
    for _ in range(ROUNDS):
        tensors = {}
        names = [f"{KEY}.{suffix}" for suffix in draw.sample(SUFFIXES, draw.randint(1, 6))]
        for name in names + draw.sample(WORDS, draw.choice((0, 0, 1, 2))):
            shape = [draw.choice((0, 1, 2, 3, 32)) for _ in range(draw.randint(0, 5))]
            tensors[name] = torch.full(shape, draw.choice(VALUES)).to(draw.choice(dtypes))
        config = {f"unet.{name}": draw.choice((1, 0, "x", [], None, 1e308)) for name in draw.sample(TOLD, 3)}
        write(tmp_path / "x", tensors, {"lora_adapter_metadata": json.dumps(config)})
        survives(tmp_path / "x", tiny_sd1)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "../../etc/passwd.lora_down.weight",
        "<script>alert(1)</script>.lora_up.weight",
        "lora_unet_" + "a" * 100_000 + ".lora_down.weight",
        "unet." + "a." * 50_000 + "lora_A.weight",
        "\x00.alpha",
        "lora_unet_input_blocks_" + "9" * 5000 + "_0_conv.lora_down.weight",
        "base_model.model." * 1000 + "lora_A.x.weight",
    ],
)
def test_hostile_names(key: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    write(tmp_path / "x", {key: torch.ones(2, 2)}, {})
    survives(tmp_path / "x", tiny_sd1)


def test_ten_megabytes_of_html_are_text(sound: bytes, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + length])
    header["__metadata__"] |= {"modelspec.title": "<img src=x onerror=alert(1)>" * 400_000}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + sound[8 + length :])
    assert inspect(tmp_path / "x").title.startswith("<img")


def test_patterns_of_strangers_are_no_programs(sound: bytes, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    tensors = {f"unet.{'a' * 40}!.lora_{side}.weight": torch.ones(1, 1) for side in "AB"}
    config = {"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+b": 2.0}, "unet.r": []}
    write(tmp_path / "x", tensors, {"lora_adapter_metadata": json.dumps(config)})
    survives(tmp_path / "x", tiny_sd1)


class Largest(TorchDispatchMode):
    """How many bytes the largest tensor made inside has."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down.weight": (1, 50_000), "lora_up.weight": (50_000, 1)},
        {
            "lora_down.weight": (1, 9_000, 1, 1),
            "lora_up.weight": (9, 1, 1, 1),
            "lora_mid.weight": (1, 1, 300, 300),
        },
        {"hada_w1_a": (9_000, 1), "hada_w1_b": (1, 9_000), "hada_w2_a": (9_000, 1), "hada_w2_b": (1, 9_000)},
        {"lokr_w1": (300, 300), "lokr_w2": (300, 300)},
        {"b1.weight": (9_000, 1), "b2.weight": (1, 9_000), "a1.weight": (9_000, 1), "a2.weight": (1, 9_000)},
        {"oft_blocks": (9_000, 1, 1)},
        {"oft_diag": (9_000, 1, 1)},
        {"lora_down.weight": (1, 9_000), "lora_up.weight": (9_000, 1), "dora_scale": (9_000, 1)},
    ],
)
def test_small_files_make_no_large_tensors(
    shapes: dict[str, tuple[int, ...]], tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    """Not when read, applied, merged, resized or compared: 8 times the file, and what the base itself has."""
    path = tmp_path / "x.safetensors"
    write(path, {f"{KEY}.{suffix}": torch.ones(shape) for suffix, shape in shapes.items()}, {})
    base = max(
        parameter.nbytes for root in tiny_sd1.family.components.values() for parameter in root.parameters()
    )
    calls: tuple[Callable[[], object], ...] = (
        lambda: merge([Entry(path)], output=tmp_path / "y", method="ties"),
        lambda: resize(path, output=tmp_path / "y", rank=1),
        lambda: conflict(Entry(path), Entry(path)),
        lambda: profile(path),
    )
    with Largest() as largest:
        survives(path, tiny_sd1)
        for call in calls:
            with pytest.raises(AdapterError):
                call()
    assert largest.bytes <= 8 * path.stat().st_size + 2 * base


def test_memory_stays_near_the_files_size(sound: bytes, tmp_path: Path) -> None:
    """A header that claims terabytes is refused before anything is allocated."""
    line = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}
    text = json.dumps({f"{KEY}.{s}": line for s in SUFFIXES}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    with pytest.raises(AdapterError):
        inspect(tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
