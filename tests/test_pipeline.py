"""Threads: order, bounds and errors."""

import threading
from itertools import count

import pytest

from deformable_detr.pipeline import OrderedPool, ordered_map


def test_results_come_in_order_and_few_items_are_taken():
    taken, gate = [], threading.Event()

    def items():
        for index in count():
            taken.append(index)
            yield index

    def work(index):
        if index == 0:
            gate.wait(10)  # the first is the last to be done
        return index * 2

    results = ordered_map(work, items(), num_threads=3, limit=5)
    threading.Timer(0.05, gate.set).start()
    found = []
    for item, future in results:
        found.append((item, future.result()))
        assert len(taken) <= item + 5
        if item == 20:
            break
    results.close()
    assert found == [(index, 2 * index) for index in range(21)]


def test_one_failing_item_does_not_end_the_others():
    found = [future.exception() for _, future in ordered_map(lambda x: 1 / x, [1, 0, 2], num_threads=2, limit=2)]
    assert [type(error) for error in found] == [type(None), ZeroDivisionError, type(None)]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_lone_item_needs_no_thread_of_its_own_where_that_can_be_known(limit):
    ((item, future),) = ordered_map(lambda x: threading.current_thread(), ["item"], num_threads=2, limit=limit)
    assert (item, future.result() is threading.current_thread()) == ("item", limit > 1)
    ((_, failed),) = ordered_map(lambda x: 1 / x, [0], num_threads=2, limit=limit)
    assert isinstance(failed.exception(), ZeroDivisionError)


def test_nothing_to_do():
    assert list(ordered_map(str, [], num_threads=2, limit=2)) == []


def test_pool_waits_beyond_its_limit():
    gate, done = threading.Event(), threading.Event()

    def fill(pool: OrderedPool) -> None:
        for _ in range(4):
            pool.submit(gate.wait, 10)
        done.set()

    with OrderedPool(2, limit=3, name="test") as pool:
        producer = threading.Thread(target=fill, args=(pool,))
        producer.start()
        assert not done.wait(0.1)  # three are under way: the fourth waits for the first
        gate.set()
        producer.join()


def test_pool_is_done_at_its_end():
    found: list[int] = []
    with OrderedPool(1, limit=3, name="test") as pool:
        for index in range(10):
            pool.submit(found.append, index)
        pool.finish()
        assert found == list(range(10))
        pool.submit(found.append, 10)
    assert found == list(range(11))


def test_pool_raises_what_a_piece_raised():
    with pytest.raises(ZeroDivisionError), OrderedPool(1, limit=2, name="test") as pool:
        pool.submit(lambda: 1 / 0)


def test_pool_cancels_after_an_error():
    ran, gate = [], threading.Event()
    with pytest.raises(RuntimeError), OrderedPool(1, limit=10, name="test") as pool:
        pool.submit(gate.wait, 10)
        for index in range(5):
            pool.submit(ran.append, index)
        threading.Timer(0.05, gate.set).start()
        raise RuntimeError
    assert ran == []
