"""Work for threads: several items at once, few of them in memory, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class OrderedPool:
    """Threads that are given work one piece after the other.

    At most `limit` pieces are under way: `submit` waits for the oldest one beyond that, so that a fast producer does not fill the
    memory. A context manager: at its end everything is done (after an error: cancelled).
    """

    def __init__(self, num_threads: int, limit: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._limit = limit
        self._pending: deque[Future[Any]] = deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Give a piece of work.

        Raises:
            Exception: what an earlier piece raised.
        """
        self._pending.append(self._pool.submit(function, *arguments))
        if len(self._pending) > self._limit:
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait for all that was submitted.

        Raises:
            Exception: what the first failing piece raised.
        """
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Cancel what has not begun, and wait for the rest."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.close()


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int,
    limit: int,
    name: str = "map",
    initializer: Callable[[], object] | None = None,
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Apply a function in threads, at most `limit` items ahead of the consumer; to a lone item here, as threads take milliseconds.

    Args:
        function: of one item; it runs in a thread, or in the caller's where there is no second item.
        items: taken one after the other in the caller's thread, so they may come from an endless generator.
        limit: how many items may be under way or finished and not yet taken.

    Yields:
        Each item with its finished future, in order: `future.result()` gives the result or raises what the function raised, so that
        one failing item need not end the others.
    """
    remaining = iter(items)
    first = list(islice(remaining, 2)) if limit > 1 else []
    if len(first) == 1:
        yield first[0], _done(function, first[0])
        return
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=initializer)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    remaining = chain(first, remaining)
    try:
        while True:
            for item in remaining:
                pending.append((item, pool.submit(function, item)))
                if len(pending) >= limit:
                    break
            if not pending:
                return
            item, future = pending.popleft()
            future.exception()  # waits
            yield item, future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _done(function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """The finished future of a function that has run here."""
    future: Future[Result] = Future()
    try:
        future.set_result(function(item))
    except Exception as error:
        future.set_exception(error)
    return future
