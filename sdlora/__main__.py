"""`python -m sdlora` is the program `sdlora`."""

import sys

from sdlora.cli import main

sys.exit(main())
