"""The documentation says what the code says."""

import pytest

from tests.documents import PARTS, written


@pytest.mark.parametrize(("file", "name"), PARTS)
def test_generated_parts_are_fresh(file: str, name: str) -> None:
    assert written(file, name) == PARTS[file, name](), "run `python -m tests.documents`"
