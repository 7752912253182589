"""The web page. Knows gradio and sdlora.service, and no torch."""
