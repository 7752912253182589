"""The edge between handlers and the page: errors arrive as words, uploads out of one folder."""

import functools
import logging
import os
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import ParamSpec, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder

from sdlora.errors import SdloraError, unforeseen
from ui.wording import in_labels

P = ParamSpec("P")
R = TypeVar("R")


def uploads() -> Path:
    """The folder in which Gradio keeps what browsers send."""
    return Path(get_upload_folder())


def placeless(error: SdloraError) -> SdloraError:
    """The error, of files that a browser sent told by their names: where they were kept says nothing."""
    place = re.escape(f"{uploads()}{os.sep}") + r"[0-9a-f]{16,}" + re.escape(os.sep)
    return SdloraError(re.sub(place, "", error.message), re.sub(place, "", error.hint))


def told(handler: Callable[P, R]) -> Callable[P, R]:
    """`handler`, with its errors shown in the page until they are closed."""

    @functools.wraps(handler)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except SdloraError as error:
            raise gr.Error(_plain(placeless(error)), duration=None, print_exception=False) from error
        except gr.Error:
            raise
        except Exception as error:  # the process edge of the page
            logging.getLogger("sdlora").exception("A handler of the page failed")
            raise gr.Error(
                _plain(f"{unforeseen(error)} The terminal shows the details."),
                duration=None,
                print_exception=False,
            ) from error

    return run


def emptied() -> None:
    """What a field for files holds once they are refused: nothing."""


def _plain(words: object) -> str:
    """As the page's messages take it: they are HTML, and a prompt's `<lora:...>` is not."""
    return escape(in_labels(str(words)), quote=False)
