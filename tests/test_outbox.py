"""What is written in one turn of the loop: the first at once, the rest at its end, in order."""

import asyncio

from gateway.outbox import Outbox


class Sender:
    """Notes when it wrote."""

    def __init__(self, name: str, written: list[str]) -> None:
        self._name = name
        self._written = written

    def flush(self) -> None:
        """Write."""
        self._written.append(self._name)


async def test_the_first_goes_out_at_once_and_the_rest_at_the_end_of_the_turn() -> None:
    """Nobody who is alone waits; nobody who is not wakes a reader for himself."""
    written: list[str] = []
    outbox = Outbox(asyncio.get_running_loop())
    senders = {name: Sender(name, written) for name in "abc"}
    for name in "abca":
        outbox.send(senders[name])
    assert written == ["a"]
    await asyncio.sleep(0)
    assert written == ["a", "b", "c", "a"]
    outbox.send(senders["b"])
    assert written[4:] == ["b"], "a new turn has a first of its own"
    await asyncio.sleep(0)
    assert written[4:] == ["b"]


async def test_what_is_sent_while_a_turn_ends_belongs_to_the_next() -> None:
    """A flush may let others write."""
    written: list[str] = []
    outbox = Outbox(asyncio.get_running_loop())
    last = Sender("last", written)

    class Again(Sender):
        def flush(self) -> None:
            """Write, and let another write."""
            super().flush()
            outbox.send(last)

    outbox.send(Sender("first", written))
    outbox.send(Again("again", written))
    await asyncio.sleep(0)
    assert written == ["first", "again", "last"]


async def test_one_that_fails_holds_nobody_up() -> None:
    """Those behind it write all the same, and the failure is told."""
    written: list[str] = []
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    outbox = Outbox(loop)

    class Fails(Sender):
        def flush(self) -> None:
            """Write nothing."""
            raise OSError("no more")

    for sender in (Sender("a", written), Fails("b", written), Sender("c", written), Sender("d", written)):
        outbox.send(sender)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert written == ["a", "c", "d"]
    assert told == ["no more"]
