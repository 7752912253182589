"""Work done a little before it is needed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

V = TypeVar("V")
R = TypeVar("R")


def ahead(
    function: Callable[[V], R], values: Iterable[V], *, depth: int, workers: int = 1
) -> Generator[R, None, None]:
    """`function(value)` of each value in order, computed by threads that are at most `depth` values ahead.

    `values` may be endless. Closing the iterator ends the threads; an error of `function` is raised here.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="ahead") as pool:
        try:
            for value in values:
                waiting.append(pool.submit(function, value))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
