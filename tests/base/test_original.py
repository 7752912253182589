"""A single file and a folder of the same weights are the same model."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdlora.base import keymaps
from sdlora.base.files import Config, ModelFolder
from sdlora.base.networks import measured_prediction
from sdlora.base.original import LAYOUTS, OriginalFile, ShippedRest
from sdlora.base.vocabulary import clip_tokenizer
from sdlora.contracts import Family
from sdlora.errors import ModelError
from sdlora.families import FAMILIES
from sdlora.loading import open_model
from sdlora.noise import Prediction
from tests.conftest import TinyModel
from tests.original import write_original

NETWORKS = {
    # full size: parameters of the networks of SD 1.5, SD 2.1 and SDXL base
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """The tiny model of each family."""
    model: TinyModel = request.getfixturevalue(f"tiny_{request.param}")
    return model


def load(file: OriginalFile) -> Family:
    return FAMILIES.get(file.family).load(file, device=torch.device("cpu"), dtype=torch.float32)


def networks(family: Family) -> dict[str, nn.Module]:
    return {**family.components, "vae": family.autoencoder.vae}  # type: ignore[attr-defined]  # all have one


def test_all_tensors_of_a_file_equal_the_folders(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny.folder, tmp_path / "x.safetensors", family=tiny.family.name)
    loaded = load(OriginalFile(path, rest=ModelFolder(tiny.folder)))
    assert loaded.name == tiny.family.name
    for component, network in networks(tiny.family).items():
        ours = networks(loaded)[component].state_dict()
        for name, tensor in network.state_dict().items():
            assert torch.equal(ours.pop(name), tensor), name
        assert not ours


def test_every_name_is_used_once_and_none_is_left(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny.folder, tmp_path / "x.safetensors", family=tiny.family.name)
    parts, state = LAYOUTS[tiny.family.name], load_file(path)
    file = OriginalFile(path)
    for component in parts:
        names = [name for name, _ in file.tensors(component)]
        assert len(names) == len(set(names))
    left = [name for name in state if not name.startswith(tuple(part.prefix for part in parts.values()))]
    assert left == []


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_names_are_read_as_diffusers_reads_them(tiny: TinyModel, tmp_path: Path, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    path = write_original(tiny.folder, tmp_path / "x.safetensors", family=tiny.family.name)
    loader = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[kind]
    convert = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}[kind]
    theirs = convert(load_file(path), dict(loader.load_config(tiny.folder / kind)))
    ours = dict(OriginalFile(path).tensors(kind))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].reshape(ours[name].shape)) for name in ours)


@pytest.mark.parametrize("family", sorted(NETWORKS))
def test_the_shipped_configurations_are_the_full_sized_models(family: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    rest = ShippedRest(family)
    with torch.device("meta"):
        for component, parameters in NETWORKS[family].items():
            config = dict(rest.config(component))
            makers = {
                "unet": lambda config: UNet2DConditionModel.from_config(config),
                "vae": lambda config: AutoencoderKL.from_config(config),
                "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
                "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
            }
            network = makers[component](config)
            assert sum(p.numel() for p in network.parameters()) == parameters, component


def test_the_shipped_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    ids = tokenizer("A photo of a cat, dog").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 267, 1929, 49407]
    assert ShippedRest("sdxl").tokenizer("tokenizer_2").pad_token_id == 0
    assert ShippedRest("sdxl").tokenizer("tokenizer").pad_token_id == 49407


def markers(tiny: TinyModel, path: Path, **tensors: Tensor) -> OriginalFile:
    return OriginalFile(
        write_original(tiny.folder, path / "x.safetensors", family="sdxl", **tensors),
        rest=ModelFolder(tiny.folder),
    )


def test_markers_tell_v_prediction_and_zero_terminal_snr(tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    assert load(markers(tiny_sdxl, tmp_path)).noise.prediction == "epsilon"
    noise = load(markers(tiny_sdxl, tmp_path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))).noise
    assert noise.prediction == "v_prediction" and noise.zero_terminal
    with pytest.raises(ModelError, match="Epsilon prediction cannot be combined"):
        load(markers(tiny_sdxl, tmp_path, ztsnr=torch.zeros(0)))


def test_metadata_tells_v_prediction(tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sdxl.folder, tmp_path / "x.safetensors", family="sdxl")
    save_file(load_file(path), path, metadata={"modelspec.prediction_type": "v"})
    assert OriginalFile(path).config("scheduler")["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("metadata", "side"),
    [
        ({"modelspec.prediction_type": "v"}, 96),
        ({"modelspec.prediction_type": "epsilon"}, 64),
        ({"modelspec.prediction_type": "epsilon", "modelspec.resolution": "640x640"}, 80),
        ({"modelspec.resolution": "large"}, 8),
    ],
)
def test_the_side_of_sd2_follows_from_what_the_file_says(
    tiny_sd2: TinyModel, tmp_path: Path, metadata: dict[str, str], side: int
) -> None:
    path = write_original(tiny_sd2.folder, tmp_path / "x.safetensors", family="sd2")
    save_file(load_file(path), path, metadata=metadata)
    assert OriginalFile(path, rest=ModelFolder(tiny_sd2.folder)).config("unet")["sample_size"] == side


class Silent(ModelFolder):
    """What a single file of SD 2 leaves out, but for what the UNet predicts."""

    def config(self, component: str) -> Config:
        told = super().config(component)
        return {**told, "prediction_type": None} if component == "scheduler" else told


@pytest.mark.parametrize(("prediction", "side"), [("v_prediction", 64), ("epsilon", 64 * 64 // 96)])
def test_without_a_word_noise_and_side_of_sd2_follow_from_what_is_measured(
    tiny_sd2: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prediction: Prediction, side: int
) -> None:
    path = write_original(tiny_sd2.folder, tmp_path / "x.safetensors", family="sd2")
    monkeypatch.setattr("sdlora.families.sd1.measured_prediction", lambda *unet, **where: prediction)
    family = load(OriginalFile(path, rest=Silent(tiny_sd2.folder)))
    assert (family.native_size, family.noise.prediction) == (side, prediction)


@pytest.mark.parametrize(("prediction", "side"), [("v_prediction", 768), ("epsilon", 512)])
def test_what_a_person_says_of_the_noise_is_not_measured(
    tiny_sd2: TinyModel, tmp_path: Path, prediction: Prediction, side: int
) -> None:
    path = write_original(tiny_sd2.folder, tmp_path / "x.safetensors", family="sd2")
    said = {"prediction_type": prediction, "rescale_betas_zero_snr": prediction == "v_prediction"}
    family = load(OriginalFile(path, rest=Silent(tiny_sd2.folder), noise=said))
    assert (family.native_size, family.noise.prediction) == (side, prediction)
    assert family.noise.zero_terminal == (prediction == "v_prediction")


class Answering(nn.Module):
    """A UNet that gives `sign` times its input back."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, noisy: Tensor, timestep: Tensor, states: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        return (self.sign * noisy,)


@pytest.mark.parametrize(("sign", "prediction"), [(1, "epsilon"), (0.07, "epsilon"), (0, "v_prediction")])
def test_a_prediction_that_nothing_tells_is_measured(sign: float, prediction: str) -> None:
    config, device = {"cross_attention_dim": 8}, torch.device("cpu")
    measured = measured_prediction(Answering(sign), config, device=device, dtype=torch.float32)
    assert measured == prediction


def test_an_inpainting_file_is_refused_by_name(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sd1.folder, tmp_path / "x.safetensors", family="sd1")
    state = load_file(path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    state[first] = state[first].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(state, path)
    with pytest.raises(ModelError, match="an inpainting model"):
        load(OriginalFile(path, rest=ModelFolder(tiny_sd1.folder)))


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "an adapter"),
        ("lora_unet_down_blocks_0.diff", "an adapter"),
        ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "an adapter"),
        ("base_model.model.down_blocks.0.attn1.to_q.oft_R.default", "an adapter"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux model"),
        ("model.diffusion_model.joint_blocks.0.x.weight", "a Stable Diffusion 3 model"),
        ("single_transformer_blocks.0.attn.to_q.weight", "a Flux model"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
        ("emb_params", "an embedding"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a UNet without a text encoder or VAE"),
        ("decoder.up.0.block.0.conv1.weight", "a VAE"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "a VAE"),
        ("down_blocks.0.resnets.0.conv1.weight", "one network of a model folder"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
    ],
)
def test_a_file_that_is_no_base_is_told_what_it_is(tmp_path: Path, name: str, noun: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=f"is {noun}, not a base model"):
        open_model(tmp_path / "x.safetensors")


def test_a_model_of_another_noise_is_refused_by_name(tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a model of EDM's noise"):
        markers(tiny_sdxl, tmp_path, edm_mean=torch.zeros(4), edm_std=torch.ones(4))


def test_what_other_tools_leave_in_a_file_changes_nothing(tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sdxl.folder, tmp_path / "x.safetensors", family="sdxl")
    state = load_file(path)
    second = "conditioner.embedders.1.model.text_projection"
    state[f"{second}.weight"] = state.pop(second).T.contiguous()
    left = ("model_ema.decay", "first_stage_model.model_ema.decay", "first_stage_model.loss.logvar")
    save_file({**state, **{name: torch.zeros(1) for name in left}}, path)
    ours = load(OriginalFile(path, rest=ModelFolder(tiny_sdxl.folder)))
    for component, network in networks(tiny_sdxl.family).items():
        found = networks(ours)[component].state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def test_an_unknown_tensor_is_an_error(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    path = write_original(tiny_sd1.folder, tmp_path / "x.safetensors", family="sd1")
    save_file({**load_file(path), "model.diffusion_model.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"holds the unknown 1 of .* extra\.weight"):
        load(OriginalFile(path, rest=ModelFolder(tiny_sd1.folder)))


def test_the_joint_projection_is_query_key_value() -> None:
    joint = torch.arange(6.0)[:, None]
    split = dict(keymaps.open_clip("transformer.resblocks.3.attn.in_proj_weight", joint))
    assert split["text_model.encoder.layers.3.self_attn.k_proj.weight"].flatten().tolist() == [2, 3]
