"""Events are whole lines of a file with one writer and any number of readers."""

from pathlib import Path

from sdlora import events
from sdlora.events import Notice, RunEnded, StepDone


def step(number: int) -> StepDone:
    return StepDone(step=number, loss=0.5, lr=1e-4, grad_norm=1.0, seconds=0.1)


def test_what_is_appended_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written = [step(1), Notice(text="schön\n<b>", hint="x"), RunEnded(outcome="finished", step=1)]
    events.append(path, written[:1])
    events.append(path, written[1:])
    assert events.read(path)[0] == written


def test_a_reader_goes_on_where_it_left_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.append(path, [step(1)])
    first, offset = events.read(path)
    events.append(path, [step(2)])
    second, _ = events.read(path, offset)
    assert [e.step for e in (*first, *second) if isinstance(e, StepDone)] == [1, 2]


def test_a_line_being_written_is_left_for_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.append(path, [step(1), step(2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    found, offset = events.read(path)
    assert len(found) == 1
    path.write_bytes(whole)
    assert len(events.read(path, offset)[0]) == 1


def test_torn_and_unknown_lines_do_not_hide_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"type": "StepDone", "st\n[]\n3\n{"type": "OfTomorrow"}\n\xff\xfe\n')
    events.append(path, [step(3)])
    assert [type(e) for e in events.read(path)[0]] == [StepDone]
