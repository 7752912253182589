"""What goes wrong is told of files by the names that a person gave them."""

import gradio as gr
import pytest

from sdlora.errors import AdapterError, ConfigError, SdloraError
from ui.generate_tab import sides
from ui.handling import placeless, told, uploads


def test_where_an_upload_was_kept_is_not_told() -> None:
    kept = uploads() / ("0a" * 32) / "cut in half.safetensors"
    error = placeless(AdapterError(f"{kept} is no sound file.", f"Fetch {kept} again."))
    assert str(error) == "cut in half.safetensors is no sound file. Fetch cut in half.safetensors again."
    assert str(placeless(SdloraError("/home/me/ink.safetensors is gone."))).startswith("/home/me/ink")


@pytest.mark.parametrize(("side", "portrait"), [(128, (96, 144)), (512, (384, 576)), (1024, (832, 1216))])
def test_a_shape_has_about_the_area_that_the_base_knows(side: int, portrait: tuple[int, int]) -> None:
    assert sides(side, 1.0) == (side, side)
    assert sides(side, 2 / 3) == portrait and sides(side, 3 / 2) == portrait[::-1]


def test_a_tag_in_an_error_reaches_the_page_as_text() -> None:
    @told
    def handler() -> None:
        raise ConfigError("<lora:a:b> & <img src=x>")

    with pytest.raises(gr.Error) as caught:
        handler()
    assert caught.value.message == "&lt;lora:a:b&gt; &amp; &lt;img src=x&gt;"
