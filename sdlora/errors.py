"""Every error a person can meet, as one tree.

SdloraError            one sentence (what, where) and a hint (what to do)
|-- UserError          the person can mend it; exit code 2
|   |-- ConfigError    an option is unknown, of the wrong type or out of range
|   |-- DatasetError   images or captions cannot be used
|   |-- ModelError     a base model is missing, damaged or of no known family
|   |   `-- ModelAbsent  it is on the Hub, and not downloaded yet
|   |-- AdapterError   an adapter file cannot be read, or matches nothing
|   |-- RunError       a run folder is busy, damaged or of another configuration
|   `-- DeviceBusy     another process of ours holds the device
|-- OutOfMemory        the device's memory did not suffice; the hint says what would fit
|-- StorageError       a file could not be written (disk full, read-only folder)
|   `-- PlaceError     no file can lie at the place that was named; exit code 2
`-- Cancelled          the person asked to stop; never shown as a failure
"""


class SdloraError(Exception):
    """A failure told in one sentence, with an optional hint that says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


def first_line(error: BaseException) -> str:
    """What another library's error says first, without a full stop; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def unforeseen(error: BaseException) -> str:
    """The sentence for an error that is none of this tree."""
    return f"Something unforeseen went wrong: {type(error).__name__}: {error}."


class UserError(SdloraError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DatasetError(UserError):
    pass


class ModelError(UserError):
    pass


class ModelAbsent(ModelError):
    pass


class AdapterError(UserError):
    pass


class RunError(UserError):
    pass


class DeviceBusy(UserError):
    pass


class OutOfMemory(SdloraError):
    pass


class StorageError(SdloraError):
    pass


class PlaceError(StorageError):
    exit_code = 2


class Cancelled(SdloraError):
    pass
