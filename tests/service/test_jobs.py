"""Drawing and merging happen in a child; what goes wrong there is an error of that request only."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdlora.errors import AdapterError
from sdlora.generation.request import GenerateRequest
from sdlora.generation.sampler import generate
from sdlora.loading import load_family
from sdlora.service.jobs import Job
from sdlora.service.process import Worker
from sdlora.service.studio import CACHE_BYTES, Entry, Studio
from tests.conftest import TinyModel
from tests.network.test_stack import saved

SECONDS = 120.0  # far more than a request needs; a hang must end


@pytest.fixture
def adapter(studio: Studio, tmp_path: Path, tiny_sd1: TinyModel) -> Path:
    return studio.library.add(saved(tiny_sd1.family, tmp_path / "ink.safetensors")).path


def request(**changes: object) -> GenerateRequest:
    return GenerateRequest.of({"prompt": "a red cat", "steps": 2, "seed": 7, **changes})


def drawn(studio: Studio, asked: GenerateRequest) -> Job:
    return studio.jobs.wait(studio.generate(asked).number, SECONDS)


def test_pictures_are_files_that_restore_their_request(studio: Studio, adapter: Path) -> None:
    job = drawn(studio, request(prompt="a red cat <lora:ink:0.5>", count=2))
    assert (job.state, len(job.files)) == ("done", 2), job.error
    assert studio.history.pictures() == tuple(reversed(job.files))
    restored = studio.restore(job.files[1]).request
    assert (restored.prompt, restored.seed, restored.stack) == ("a red cat", 8, (Entry(adapter, 0.5),))


def test_a_stack_leaves_nothing_to_the_next_request(studio: Studio, adapter: Path) -> None:
    def pixels(prompt: str) -> bytes:
        job = drawn(studio, request(prompt=prompt))
        assert job.state == "done", job.error
        with Image.open(job.files[0]) as picture:
            return picture.tobytes()

    plain, fading = "a red cat", "a red cat <lora:ink:4:curve=1@0,0@1>"
    first = [pixels(plain), pixels(fading), pixels("a red cat <lora:ink:4>")]
    assert [pixels(fading), pixels(plain)] == [first[1], first[0]]
    assert len(set(first)) == 3


def test_an_answer_that_nobody_foresaw_ends_its_request_only(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "receive", lambda worker: {"id": 1})
        assert "unforeseen" in drawn(studio, request()).error
    assert drawn(studio, request()).state == "done"


def test_what_became_of_every_key_is_told(studio: Studio, adapter: Path, tiny_sd1: TinyModel) -> None:
    keys = {**load_file(adapter), "lora_unet_no_such_layer.lora_down.weight": torch.ones(4, 4)}
    odd = adapter.with_name("odd.safetensors")
    save_file(keys, odd)
    job = drawn(studio, request(prompt="a red cat <lora:ink:0.5> <lora:odd:0.5:start=0.2>"))
    assert job.state == "done", job.error
    ink, other = job.told["applied"]
    assert (ink["name"], ink["matched"], ink["unmatched"]) == ("ink", len(keys) - 1, 0)
    assert (other["name"], other["layers"], other["unmatched"]) == ("odd", ink["layers"], 1)
    assert other["examples"] == ["lora_unet_no_such_layer.lora_down.weight"]


def test_adapters_in_memory_are_counted_and_limited(studio: Studio, adapter: Path, tmp_path: Path) -> None:
    shutil.copy(adapter, adapter.with_name("ink2.safetensors"))
    assert studio.kept() == (0, 0)
    for limit, files in ((CACHE_BYTES, 2), (0, 1)):
        studio.adapter_bytes = limit
        assert drawn(studio, request(prompt="a cat <lora:ink:1> <lora:ink2:1>")).state == "done"
        assert studio.kept()[0] == files and studio.kept()[1] > 0
    studio.jobs.release()
    assert studio.kept() == (0, 0)


def test_what_a_request_says_of_the_base_is_what_it_is_drawn_with(
    studio: Studio, tiny_sd1: TinyModel
) -> None:
    said = {"prediction": "v_prediction", "zero_terminal": "on"}
    family = load_family(str(tiny_sd1.folder), device="cpu", dtype=torch.float32, **said)
    for asked, base in ((request(), tiny_sd1.family), (request(**said), family)):
        (expected,) = generate(base, asked)
        job = drawn(studio, asked)
        assert job.state == "done", job.error
        with Image.open(job.files[0]) as picture:
            assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).max() <= 1


def test_a_failed_request_is_told_in_words_and_the_next_one_works(studio: Studio) -> None:
    failed = drawn(studio, request(base="no-such-model"))
    assert failed.state == "failed" and "no-such-model" in failed.error
    assert drawn(studio, request()).state == "done"


def test_a_killed_worker_fails_its_request_only(studio: Studio) -> None:
    job = studio.generate(request(steps=1000))
    while studio.jobs.wait(job.number, 0.05).step == 0:
        pass
    process = studio.jobs._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    ended = studio.jobs.wait(job.number, SECONDS)
    assert ended.state == "failed" and "ended" in ended.error
    assert drawn(studio, request()).state == "done"


def test_a_cancelled_request_ends_soon_and_is_no_failure(studio: Studio) -> None:
    job = studio.generate(request(steps=1000))
    waiting = studio.generate(request())
    while studio.jobs.wait(job.number, 0.05).step == 0:
        pass
    studio.jobs.cancel(waiting.number)
    studio.jobs.cancel(job.number)
    began = time.monotonic()
    assert studio.jobs.wait(job.number, SECONDS).state == "cancelled"
    assert time.monotonic() - began < 20
    assert studio.jobs.wait(waiting.number, SECONDS).state == "cancelled"


def test_what_was_finished_when_a_request_is_cancelled_is_kept(studio: Studio) -> None:
    job = studio.generate(request(steps=50, count=8))
    while not studio.jobs.wait(job.number, 0.05).files:
        pass
    studio.jobs.cancel(job.number)
    ended = studio.jobs.wait(job.number, SECONDS)
    assert (ended.state, ended.error) == ("cancelled", f"Stopped after {len(ended.files)} of 8 pictures.")
    assert 0 < len(ended.files) < 8 and studio.history.pictures() == tuple(reversed(ended.files))
    assert [studio.restore(file).request.seed for file in ended.files] == [*range(7, 7 + len(ended.files))]


def test_an_adapter_that_is_not_there_is_told_before_anything_is_drawn(studio: Studio) -> None:
    with pytest.raises(AdapterError, match="nobody"):
        studio.generate(request(prompt="a cat <lora:nobody:1>"))


def test_merging_makes_a_file_of_the_library(studio: Studio, adapter: Path) -> None:
    job = studio.jobs.wait(
        studio.merge([Entry(adapter, 0.5), Entry(adapter, 0.25)], name="both").number, SECONDS
    )
    assert job.state == "done", job.error
    assert {found.name for found in studio.library.adapters()} == {"ink", "both"}
