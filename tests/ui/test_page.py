"""The whole way through the product, by a person with a browser: bring, caption, train, mix, restore."""

import base64
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from sdlora.network.codec import AdapterFile
from tests.conftest import TinyModel
from tests.network.test_stack import saved
from tests.ui.conftest import Server, open_tab, visit

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 90_000  # milliseconds; two busy cores train and draw meanwhile
NASTY = "${document.title='owned'} {{value}} <img src=x onerror=\"document.title='owned'\"> \\u0041`"

# A folder as a browser hands it over; only a person can drop a real one.
DROP = """(contents) => {
    const file = ([name, text]) => ({name, isFile: true, isDirectory: false, file: (done) => done(
        new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name))});
    const folder = (name, entries) => ({name, isFile: false, isDirectory: true, createReader: () => {
        const left = [entries, []];
        return {readEntries: (done) => done(left.shift())};
    }});
    const event = new Event("drop", {bubbles: true, cancelable: true});
    const dropped = folder("my pictures", [folder("10_zibbo", contents.map(file))]);
    Object.defineProperty(event, "dataTransfer", {value: {items: [{webkitGetAsEntry: () => dropped}]}});
    document.querySelector("#upload button").dispatchEvent(event);
}"""


def field(page: "Page", path: str) -> str:
    return f"[id='opt-{path}'] :is(input, textarea)"


def test_1_pictures_are_brought_and_captions_written(
    page: "Page", server: Server, image_folder: Path
) -> None:
    page.locator("#new-dataset :is(input, textarea)").fill("balls")
    page.get_by_role("button", name="Create", exact=True).click()
    page.get_by_text("balls is there").wait_for()
    page.set_input_files("#upload input[type=file]", sorted(image_folder.iterdir()))
    page.locator(".picture").nth(5).wait_for()
    caption = page.get_by_label("Caption of 0-red.png")
    caption.fill(NASTY)
    page.get_by_label("Caption of 1-green.png").focus()
    page.get_by_text("Saved", exact=True).wait_for()
    assert (server.home / "datasets/balls/0-red.txt").read_text() == NASTY
    page.reload()
    page.locator(".picture").nth(5).wait_for()
    assert page.get_by_label("Caption of 0-red.png").input_value() == NASTY
    assert "owned" not in page.title()


def test_1_a_dropped_folder_keeps_its_sub_folders(page: "Page", server: Server, image_folder: Path) -> None:
    page.locator("#new-dataset :is(input, textarea)").fill("folder")
    page.get_by_role("button", name="Create", exact=True).click()
    page.get_by_text("folder is there").wait_for()
    pictures = sorted(image_folder.glob("*.png"))[:2]
    contents = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in pictures]
    page.evaluate(DROP, contents)
    page.locator(".picture").nth(1).wait_for()
    page.get_by_text("Rename or remove").click()
    page.wait_for_timeout(1000)  # the fields of the answer get their values one by one
    page.locator("#dataset-name :is(input, textarea)").fill("pictures")
    page.get_by_role("button", name="Rename", exact=True).click()
    page.locator("#health").get_by_text("pictures", exact=True).wait_for()
    page.get_by_role("button", name="Move to trash").click()
    page.get_by_text("pictures is in the trash").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.locator(".picture").nth(1).wait_for()
    page.locator("#dataset-name :is(input, textarea)").fill("folder")
    page.get_by_role("button", name="Rename", exact=True).click()
    page.locator("#health").get_by_text("folder", exact=True).wait_for()
    kept = {
        path.relative_to(server.home / "datasets/folder") for path in server.home.glob("datasets/folder/*/*")
    }
    assert kept == {Path("10_zibbo") / path.name for path in pictures}
    assert [(server.home / "datasets/folder/10_zibbo" / p.name).read_bytes() for p in pictures] == [
        path.read_bytes() for path in pictures
    ]


def test_2_the_base_is_trained_and_the_run_outlives_page_and_server(
    page: "Page", server: Server, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page.get_by_role("button", name="Train with this dataset").click()
    page.get_by_text("It fits").wait_for()
    expect(page.locator(field(page, "output.name"))).to_have_value("balls")
    page.locator(field(page, "data.captions.trigger")).fill("zibbo")
    (tmp_path / "few.toml").write_text("[preview]\nevery = 6\nsteps = 2\n")
    page.get_by_text("These settings as a file").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load settings (.toml)").click()
    chooser.value.set_files(tmp_path / "few.toml")
    page.get_by_text("Previews", exact=True).first.click()
    expect(page.locator(field(page, "preview.every"))).to_have_value("6")
    page.locator(field(page, "output.name")).fill("ink")
    page.locator(field(page, "loop.steps")).fill("-3")
    page.get_by_role("button", name="Start training").wait_for()
    page.locator("#plan .bad").wait_for()
    page.locator(field(page, "loop.steps")).fill("12")
    page.get_by_text("It fits").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.locator("#run-head").get_by_text("ink", exact=False).first.wait_for()
    page.goto("about:blank")  # a page that loses its server says so in the console
    server.kill()
    server.start()
    visit(page, server, "?tab=runs")
    page.locator("#run-head .badge.finished").wait_for(timeout=PATIENCE)
    assert page.locator("#previews img").count() >= 2
    page.locator("#loss svg").wait_for()
    open_tab(page, "Train")
    for dataset, trigger in (("folder", ""), ("balls", "zibbo")):
        page.locator(f"{field(page, 'data.folder')}").click()
        page.get_by_role("option", name=dataset).click()
        expect(page.locator(field(page, "output.name"))).to_have_value(dataset)
        expect(page.locator(field(page, "data.captions.trigger"))).to_have_value(trigger)
    open_tab(page, "Datasets")
    page.get_by_role("button", name="Try with the sample set “character”").click()
    page.locator("#health").get_by_text("character", exact=True).wait_for()
    page.get_by_role("button", name="Train with this dataset").click()
    expect(page.locator(field(page, "output.name"))).to_have_value("character")
    expect(page.locator(field(page, "data.captions.trigger"))).to_have_value("zibbo")
    expect(page.locator("[id='opt-output.subject']").get_by_label("character")).to_be_checked()
    expect(page.locator(field(page, "loop.steps"))).to_have_value("600")


def test_3_two_adapters_are_mixed_and_the_picture_restores_the_form(
    page: "Page", server: Server, tiny_sd1: TinyModel, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    other = saved(tiny_sd1.family, tmp_path / "wash.safetensors")
    open_tab(page, "Adapters")
    page.set_input_files("#add-files input[type=file]", other)
    page.get_by_text("wash is in the library").wait_for()
    page.get_by_role("button", name="Use in Generate").click()
    weight = page.get_by_label("Weight of wash", exact=True)
    weight.fill("0.5")
    page.get_by_label("More on wash").click()
    page.get_by_label("When").select_option("in")
    page.get_by_label("Where").select_option("left")
    page.get_by_label("What of it").select_option("style")
    page.get_by_label("Text encoder weight of wash").fill("0.25")
    page.locator(field(page, "prompt")).fill("a red cat <lora:ink:0.8:0.6>")
    page.locator(field(page, "steps")).fill("3")
    page.get_by_role("button", name="Portrait").click()
    expect(page.locator(field(page, "height"))).to_have_value("72")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#results img").wait_for(timeout=PATIENCE)
    seed = page.locator(field(page, "seed")).input_value()
    assert f"Seed {seed}" in page.locator("#results").inner_text()
    told = page.locator("#applied").inner_text()
    assert "wash:" in told and "ink:" in told and told.count("keys fit.") == 2
    (picture,) = (server.home / "outputs").rglob("*.png")
    visit(page, server, "?tab=generate")
    draft = page.locator(field(page, "prompt")).input_value()
    assert draft == "a red cat <lora:ink:0.8:0.6>"  # a reload loses nothing
    page.locator(field(page, "prompt")).fill("")
    page.get_by_role("button", name="Remove wash").click()
    page.set_input_files("#restore input[type=file]", picture)
    page.get_by_text("the seed included").wait_for()
    assert page.locator(field(page, "prompt")).input_value() == "a red cat"
    assert page.locator(field(page, "steps")).input_value() == "3"
    assert page.get_by_label("Weight of wash", exact=True).input_value() == "0.5"
    assert page.get_by_label("Weight of ink", exact=True).input_value() == "0.6"
    page.get_by_label("More on ink").click()
    assert page.get_by_label("Text encoder weight of ink").input_value() == "0.8"
    told = page.get_by_label("More on wash").inner_text()
    assert told == "More text 0.25, fading in, left half, style, not content"
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#results img").wait_for(timeout=PATIENCE)
    page.locator("#history").get_by_role("button", name="Use the settings of").first.click()
    page.get_by_text("the seed included").wait_for()
    first, second = sorted((server.home / "outputs").rglob("*.png"), key=os.path.getmtime)
    assert first.read_bytes() == second.read_bytes()


def test_4_a_mix_is_balanced_merged_and_described(page: "Page", server: Server, tiny_sd1: TinyModel) -> None:
    from playwright.sync_api import expect

    saved(tiny_sd1.family, server.home / "models" / "Lora" / "spray.safetensors", seed=1)
    open_tab(page, "Adapters")
    for name in ("spray", "wash"):
        page.locator("#merge-add input").click()
        page.get_by_role("option", name=name).first.click()
        page.get_by_label(f"Weight of {name}", exact=True).wait_for()
    page.get_by_role("button", name="How do they get along?").click()
    page.locator("#merge-meter").get_by_role("meter").wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Balance the weights").click()
    page.get_by_text("The weights are balanced").wait_for()
    assert float(page.get_by_label("Weight of wash", exact=True).input_value()) < 1
    page.get_by_text("Merge the mix into one adapter").click()
    page.locator("#merge-name :is(input, textarea)").fill("both")
    expect(page.get_by_label("Every tool (kohya's keys)").first).to_be_checked()
    page.get_by_label("Code that uses diffusers (PEFT's keys)").locator("visible=true").check()
    page.get_by_role("button", name="Merge", exact=True).click()
    page.locator("#merged").get_by_text("both.safetensors is in the library").wait_for(timeout=PATIENCE)
    expect(page.locator("#adapter-card h2")).to_have_text("both")
    page.get_by_text("Name, words and picture").click()
    expect(page.locator("#adapter-name :is(input, textarea)")).to_have_value("both")
    page.wait_for_timeout(1000)  # the fields after it get their values one by one
    page.locator("#adapter-triggers :is(input, textarea)").fill("zwx, wash")
    page.locator("#adapter-name :is(input, textarea)").fill("spray-wash")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#adapter-card .chips")).to_have_text("zwxwash")
    page.get_by_text("Make a smaller copy").click()
    page.locator("#resize-name :is(input, textarea)").fill("small")
    page.locator("#resize-rank input").fill("2")
    page.get_by_role("button", name="Make the copy").click()
    page.locator("#resized").get_by_text("small.safetensors is in the library").wait_for(timeout=PATIENCE)
    expect(page.locator("#adapter-card h2")).to_have_text("small")
    page.get_by_role("button", name="Move to trash").click()
    page.get_by_text("small is in the trash").wait_for()
    page.locator("#library").get_by_text("spray-wash").click()
    expect(page.locator("#adapter-card h2")).to_have_text("spray-wash")
    page.get_by_role("button", name="Move to trash").click()
    page.get_by_role("button", name="Undo").click()
    page.locator("#library").get_by_text("spray-wash").wait_for()
    files = (server.home / "models" / "Lora").glob("*.safetensors")
    assert {path.stem for path in files} == {"spray", "spray-wash", "wash"}
    merged = AdapterFile.open(server.home / "models" / "Lora" / "spray-wash.safetensors")
    assert all(".lora_A." in key or ".lora_B." in key for key in merged.container.entries)


def test_5_an_error_is_told_in_words(page: "Page", server: Server, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    (tmp_path / "evil.ckpt").write_bytes(b"x")
    open_tab(page, "Adapters")
    page.set_input_files("#add-files input[type=file]", tmp_path / "evil.ckpt")
    page.get_by_text("pickle file").wait_for()
    open_tab(page, "Generate")
    page.locator(field(page, "prompt")).fill("a cat <lora:nobody:1>")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text(re.compile("no adapter called .nobody")).first.wait_for()
    Image.new("RGB", (8, 8)).save(tmp_path / "mute.png")
    page.set_input_files("#restore input[type=file]", tmp_path / "mute.png")
    page.get_by_text(re.compile("mute.png")).first.wait_for()
    expect(page.locator("#restore").get_by_text("mute")).to_have_count(0)
    page.locator(field(page, "prompt")).fill("a cat <lora:ink:abc>")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text(re.compile("<lora:ink:abc>")).first.wait_for()
    expect(page.get_by_text(re.compile("no adapter called .nobody"))).to_have_count(0)
    page.locator(field(page, "prompt")).fill("a cat")
    page.locator(field(page, "steps")).fill("0")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text(re.compile("steps = 0 is out of range")).first.wait_for()
    assert "Traceback" not in page.content()
