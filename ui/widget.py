"""Components of our own: a Gradio HTML block whose content a script of `assets/` draws with the DOM.

The drawing is not left to Gradio's templates: what Handlebars yields is evaluated once more as a JavaScript
template literal, so a caption with `${...}` in it would run as code. Scripts set `textContent` instead.
A script sees `props.value` (JSON) and `h(tag, attributes, ...children)`; it may assign `props.value`,
which Gradio then sends as the component's value, and call `trigger(event, data)`.
"""

from functools import cache
from typing import Any

import gradio as gr

from ui.theme import ASSETS


def widget(
    name: str,
    value: object,
    *,
    parts: tuple[str, ...] = (),
    **settings: Any,  # Any: gradio's own keyword arguments
) -> gr.HTML:
    """A component drawn by `assets/<name>.js`, with what `parts` define before it; its value is JSON."""
    return gr.HTML(
        value,
        html_template=f'<div class="widget {name}"></div>',
        js_on_load=_script(*parts, name),
        elem_classes=["our-widget"],
        apply_default_css=False,
        **settings,
    )


@cache
def _script(*names: str) -> str:
    return "\n".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in ("dom", *names))
