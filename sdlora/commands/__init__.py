"""The commands of `sdlora`, one module each: `add_arguments(parser)` and `run(arguments) -> exit code`."""
