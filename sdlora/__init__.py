"""sdlora: teach Stable Diffusion a style or a character, and mix the adapters."""

__version__ = "0.1.0"
