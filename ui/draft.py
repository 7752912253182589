"""What was filled in and not sent yet: the browser keeps it, so that a reload loses nothing.

It goes into the browser's local storage without the server, and is read when the page is opened.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

Parts = dict[str, dict[str, Any]]  # Any: whatever components hold


def keep(forms: Mapping[str, Mapping[str, Any]]) -> gr.BrowserState:  # Any: gradio's components
    """What the browser keeps of the forms (name -> key -> component), from the last change on."""
    kept = gr.BrowserState(None, storage_key="sdlora-draft", secret="sdlora")
    keys = [(name, key) for name, form in forms.items() for key in form]
    components = [form[key] for form in forms.values() for key in form]
    gr.on(
        [component.change for component in components],
        None,
        components,
        kept,
        js=_PACK.replace("KEYS", json.dumps(keys)),
        show_progress="hidden",
        api_visibility="private",
    )
    return kept


def parts(kept: object) -> Parts:
    """Name of a form -> what was kept of it; {} when that is nothing sound."""
    forms = kept if isinstance(kept, dict) else {}
    return forms if all(isinstance(form, dict) for form in forms.values()) else {}


_PACK = """(...values) => {
  const forms = {};
  KEYS.forEach(([name, key], at) => { (forms[name] ??= {})[key] = values[at]; });
  return forms;
}"""
