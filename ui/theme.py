"""How the page looks: one Gradio theme and one stylesheet, with AA contrast in light and in dark."""

from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

ASSETS = Path(__file__).parent / "assets"
ICON = ASSETS / "icon.svg"


def theme() -> gr.themes.Base:
    """Gradio's Soft with the machine's own fonts (nothing is fetched) and readable greys."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(**_VALUES)


@cache
def css() -> str:
    """The stylesheet."""
    return (ASSETS / "page.css").read_text(encoding="utf-8")


@cache
def scripts() -> str:
    """The scripts of the whole page, as they stand in its head."""
    texts = ((ASSETS / name).read_text(encoding="utf-8") for name in ("keys.js", "folders.js", "messages.js"))
    return "".join(f"<script>\n{text}</script>\n" for text in texts)


# Gradio's names of what differs from Soft; `*` names one of its own colours.
_VALUES: dict[str, Any] = {  # Any: gradio's keyword arguments
    "body_background_fill": "*neutral_50",
    "body_background_fill_dark": "*neutral_950",
    "block_shadow": "none",
    "block_border_width": "0px",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_title_background_fill": "transparent",
    "block_title_background_fill_dark": "transparent",
    "block_title_padding": "0",
    "block_title_text_color": "*neutral_800",
    "block_title_text_color_dark": "*neutral_100",
    "block_title_text_weight": "600",
    "block_label_text_color": "*neutral_700",
    "block_label_text_color_dark": "*neutral_200",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_600",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_hover_dark": "*primary_700",
    "button_primary_text_color": "white",
    "button_primary_text_color_dark": "white",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "checkbox_label_shadow": "none",
    "checkbox_label_background_fill_selected": "*primary_50",
    "checkbox_label_background_fill_selected_dark": "*primary_950",
    "checkbox_label_text_color_selected": "*primary_900",
    "checkbox_label_text_color_selected_dark": "*primary_100",
    "checkbox_label_border_color_selected": "*primary_600",
    "checkbox_label_border_color_selected_dark": "*primary_400",
    "checkbox_background_color_selected": "*primary_700",
    "checkbox_background_color_selected_dark": "*primary_500",
    "checkbox_border_color": "*neutral_400",
    "checkbox_border_color_dark": "*neutral_400",
    "link_text_color": "*primary_700",
    "link_text_color_dark": "*primary_300",
}
