"""`python -m ui` starts the page."""

from ui.app import main

if __name__ == "__main__":
    raise SystemExit(main())
