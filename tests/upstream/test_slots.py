"""Slots: never more at once than there are, none lost, and everyone who waits is served, turned away or gone."""

import asyncio
import random
from contextlib import suppress

import pytest

from gateway.errors import Unavailable
from gateway.upstream.slots import Slots


def slots(count: int = 1, size: int = 10, timeout: float = 60.0) -> Slots:
    return Slots("here", count, size, timeout)


async def waiter(one: Slots, key: str = "a", priority: int = 0) -> "asyncio.Task[int]":
    """A task that stands in the queue when this returns."""
    before = one.waiting
    task = asyncio.create_task(one.take(key, priority))
    while one.waiting == before and not task.done():
        await asyncio.sleep(0)
    return task


async def test_a_free_slot_is_taken_at_once() -> None:
    """Without waiting, and without a place in the queue."""
    one = slots(2)
    assert one.take_now()
    assert await one.take("a", 0) == 0
    assert not one.take_now()


async def test_a_released_slot_goes_to_the_next() -> None:
    """At once, and nobody who comes later can take it."""
    one = slots()
    assert one.take_now()
    first, second = await waiter(one), await waiter(one, "b")
    one.release()
    assert not one.take_now()
    assert await first == 1
    assert not second.done()
    one.release()
    assert await second == 2
    one.release()
    assert one.take_now()


async def test_higher_priority_is_served_first() -> None:
    """The queue's order is the slots' order."""
    one = slots()
    assert one.take_now()
    low, high = await waiter(one), await waiter(one, "b", 5)
    one.release()
    assert await high == 1
    assert not low.done()
    one.release()
    await low


async def test_a_full_queue_turns_away() -> None:
    """With a code, and the word to come back."""
    one = slots(size=1)
    assert one.take_now()
    assert not one.full
    first = await waiter(one)
    assert one.full
    with pytest.raises(Unavailable) as caught:
        await one.take("b", 0)
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after
    one.release()
    await first


async def test_waiting_ends_in_time() -> None:
    """Who waited too long is turned away, and its place is free."""
    one = slots(timeout=0.01)
    assert one.take_now()
    with pytest.raises(Unavailable) as caught:
        await one.take("a", 0)
    assert caught.value.code == "queue_timeout"
    assert one.waiting == 0
    one.release()
    assert one.take_now()


async def test_who_leaves_gives_its_place_up() -> None:
    """The next is served instead."""
    one = slots()
    assert one.take_now()
    first, second = await waiter(one), await waiter(one, "b")
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    assert one.waiting == 1
    one.release()
    await second


@pytest.mark.parametrize("leaves", ["before its turn", "after its turn"])
async def test_no_slot_is_lost_with_who_leaves_at_its_turn(leaves: str) -> None:
    """The slot that was just given goes on to the next."""
    one = slots()
    assert one.take_now()
    first, second = await waiter(one), await waiter(one, "b")
    if leaves == "before its turn":
        first.cancel()
        one.release()
    else:
        one.release()
        first.cancel()
    assert await second == 2
    assert first.cancelled() or first.done()
    one.release()
    assert one.take_now()


@pytest.mark.parametrize("seed", range(20))
async def test_never_more_at_once_and_none_lost(seed: int) -> None:
    """Through any mixture of coming, working, leaving and giving up."""
    chance = random.Random(seed)
    one = slots(count=3, size=8, timeout=0.02)
    running = most = served = 0

    async def work(key: str) -> None:
        nonlocal running, most, served
        await one.take(key, chance.randrange(2))
        running += 1
        most = max(most, running)
        try:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                await asyncio.sleep(0.01)
        finally:
            running -= 1
            served += 1
            one.release()

    tasks = []
    for number in range(120):
        tasks.append(asyncio.create_task(work("abc"[number % 3])))
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(o is None or isinstance(o, (Unavailable, asyncio.CancelledError)) for o in outcomes)
    assert most <= 3
    assert served > 0
    assert (running, one.waiting) == (0, 0)
    assert [one.take_now() for _ in range(4)] == [True, True, True, False]
