"""Words of textual inversions, in every form of file: they mean their vectors, and nothing is left behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdlora.errors import AdapterError
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.network.codec import AdapterFile
from sdlora.network.container import Container, write
from sdlora.network.embeddings import gathered, spoken
from sdlora.network.stack import Entry
from tests.conftest import TinyModel
from tests.network.test_stack import equal, saved, weights

FAMILIES = pytest.mark.parametrize("name", ["tiny_sd1", "tiny_sd2", "tiny_sdxl"])


def vectors(tiny: TinyModel, text: str) -> dict[str, Tensor]:
    """What the text encoders themselves hold for the words of a text."""
    found = {}
    for number, component in enumerate(n for n in tiny.family.components if n.startswith("text")):
        ids = tiny.family.tokenize([text]).ids[0, number]
        end = int(ids.argmax())
        table = tiny.family.components[component].get_input_embeddings().weight
        found[component] = table[ids[1:end]].detach().clone()
    return found


def bundled(tiny: TinyModel, word: str, text: str, form: str = "") -> dict[str, Tensor]:
    """The keys of an embedding whose vectors are those of a text."""
    own = vectors(tiny, text)
    names = {"text_encoder": form or "emb_params"}
    if len(own) == 2:
        names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    return {f"bundle_emb.{word}.{names[component]}": tensor for component, tensor in own.items()}


@FAMILIES
def test_a_word_means_its_vectors(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tiny: TinyModel = request.getfixturevalue(name)
    family, before = tiny.family, weights(tiny.family)
    write(tmp_path / "x.safetensors", bundled(tiny, "Zwx-1", "red house"), {})
    resolved = AdapterFile.open(tmp_path / "x.safetensors").resolve(family)
    assert not resolved.adapters and not resolved.unmatched and len(resolved.matched) in (1, 2)
    prompts = ["a (zwx-1:1.3) cat, zwx-10", "blue"]
    with spoken(family, gathered([resolved.embeddings], prompts), prompts) as words:
        told = family.encode_text(family.tokenize(prompts, weighted=True, words=words))
    plain = ["a (red house:1.3) cat, zwx-10", "blue"]
    expected = family.encode_text(family.tokenize(plain, weighted=True))
    torch.testing.assert_close(told.states, expected.states)
    assert (told.pooled is None) == (expected.pooled is None)
    if told.pooled is not None and expected.pooled is not None:
        torch.testing.assert_close(told.pooled, expected.pooled)
    assert equal(weights(family), before)


@pytest.mark.parametrize("form", ["emb_params", "string_to_param.*", "clip_l"])
def test_a_file_of_its_own_is_called_by_its_name(form: str, tiny_sd1: TinyModel, tmp_path: Path) -> None:
    own = vectors(tiny_sd1, "red house")["text_encoder"]
    write(tmp_path / "zwx.safetensors", {form: own.half()}, {})
    resolved = AdapterFile.open(tmp_path / "zwx.safetensors").resolve(tiny_sd1.family)
    assert torch.equal(resolved.embeddings["zwx"]["text_encoder"], own.half())
    assert resolved.matched == (form,)


def test_what_fits_no_encoder_is_told(tiny_sd1: TinyModel, tiny_sdxl: TinyModel, tmp_path: Path) -> None:
    path = saved(tiny_sdxl.family, tmp_path / "x.safetensors", targets="attn2.to_k")
    held = Container.open(path)
    for odd in (
        {"bundle_emb.zwx.clip_l": torch.ones(2, 32)},  # the second encoder's are missing
        {"bundle_emb.zwx.clip_l": torch.ones(2, 31), "bundle_emb.zwx.clip_g": torch.ones(2, 64)},
        bundled(tiny_sdxl, "zwx", "red") | {"bundle_emb.zwx.clip_g": torch.ones(2, 64)},
        {n: t * float("nan") for n, t in bundled(tiny_sdxl, "zwx", "red").items()},
    ):
        write(tmp_path / "y.safetensors", held.read(held.entries) | odd, {})
        resolved = AdapterFile.open(tmp_path / "y.safetensors").resolve(tiny_sdxl.family)
        assert set(resolved.unmatched) == set(odd) and resolved.adapters and not resolved.embeddings
    write(tmp_path / "z.safetensors", bundled(tiny_sdxl, "zwx", "red"), {})
    with pytest.raises(
        AdapterError, match=r"made for Stable Diffusion XL .*; the base is Stable Diffusion 1"
    ):
        AdapterFile.open(tmp_path / "z.safetensors").resolve(tiny_sd1.family)
    twice = {"bundle_emb.zwx.clip_l": torch.ones(1, 32), "bundle_emb.zwx.emb_params": torch.ones(1, 32)}
    write(tmp_path / "t.safetensors", twice, {})
    with pytest.raises(AdapterError, match="twice"):
        AdapterFile.open(tmp_path / "t.safetensors")


def test_pictures_know_the_words_of_their_adapters(tiny_sd1: TinyModel, tmp_path: Path) -> None:
    path = saved(tiny_sd1.family, tmp_path / "x.safetensors", targets="attn2.to_k")
    held = Container.open(path)
    write(path, held.read(held.entries) | bundled(tiny_sd1, "zwx", "red house", "string_to_param.*"), {})
    asked = GenerateRequest(prompt="a zwx", negative="Zwx", steps=2, stack=(Entry(path),))
    plain = replace(asked, prompt="a red house", negative="red house")
    pictures = [generate(tiny_sd1.family, request)[0].tobytes() for request in (asked, plain)]
    assert pictures[0] == pictures[1]


def test_two_meanings_of_a_word_are_refused() -> None:
    one, other = ({"zwx": {"text_encoder": torch.full((1, 4), value)}} for value in (1.0, 2.0))
    assert gathered([one, one, other], ["a cat"]) == {}
    assert gathered([one, one], ["a ZWX"]).keys() == {"zwx"}
    with pytest.raises(AdapterError, match='teach the word "zwx"'):
        gathered([one, other], ["a zwx"])
