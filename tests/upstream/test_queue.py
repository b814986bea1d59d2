"""Who is next: higher priority first, then one of each key in turn, then as they came."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.queue import FairQueue, Ticket


def filled(*tickets: Ticket) -> FairQueue:
    queue = FairQueue()
    for ticket in tickets:
        queue.push(ticket)
    return queue


def served(queue: FairQueue) -> list[Ticket]:
    return list(iter(queue.pop, None))


def keys(tickets: list[Ticket]) -> str:
    return "".join(ticket.key for ticket in tickets)


def test_an_empty_queue_has_nobody() -> None:
    """Nothing to serve, nothing to count."""
    queue = FairQueue()
    assert queue.pop() is None
    assert len(queue) == 0


def test_one_of_each_key_in_turn() -> None:
    """A key that sends a hundred does not keep out one that sends one."""
    assert keys(served(filled(*(Ticket(key) for key in "aaaabbc")))) == "abcabaa"


def test_within_a_key_as_they_came() -> None:
    """First come, first served."""
    first, second, third = (Ticket("a") for _ in range(3))
    assert served(filled(first, second, third)) == [first, second, third]


def test_higher_priority_first() -> None:
    """However many of lower priority came before."""
    assert keys(served(filled(Ticket("a"), Ticket("a"), Ticket("b", -1), Ticket("c", 5)))) == "caab"


def test_a_key_that_comes_back_waits_for_the_round() -> None:
    """Being served and asking again does not put it before those who wait."""
    queue = filled(Ticket("a"), Ticket("b"), Ticket("c"))
    assert queue.pop() is not None
    queue.push(Ticket("a"))
    assert keys(served(queue)) == "bca"


def test_a_place_can_be_given_up_once() -> None:
    """Who was served, or left, is not there to leave."""
    one, two = Ticket("a"), Ticket("a")
    queue = filled(one, two)
    assert queue.remove(two)
    assert not queue.remove(two)
    assert queue.pop() is one
    assert not queue.remove(one)
    assert not queue.remove(Ticket("never seen", 9))
    assert len(queue) == 0


TICKETS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 1)), max_size=24)


@given(wanted=TICKETS, pops=st.integers(0, 8), leave=st.sets(st.integers(0, 23), max_size=6))
def test_a_position_is_the_turn_in_which_it_is_served(
    wanted: list[tuple[str, int]], pops: int, leave: set[int]
) -> None:
    """Also after some were served and some have left."""
    tickets = [Ticket(key, priority) for key, priority in wanted]
    queue = filled(*tickets)
    gone = [queue.pop() for _ in range(pops)]
    left = [ticket for ticket in tickets if ticket not in gone]
    for number in sorted(leave):
        if number < len(left):
            assert queue.remove(left[number])
    waiting = [ticket for number, ticket in enumerate(left) if number not in leave]
    assert len(queue) == len(waiting)
    told = {queue.position(ticket): ticket for ticket in waiting}
    turns = served(queue)
    assert [told[place] for place in range(1, len(waiting) + 1)] == turns
    assert len(queue) == 0


@given(wanted=TICKETS)
def test_no_key_is_served_twice_while_another_waits_its_turn(wanted: list[tuple[str, int]]) -> None:
    """Between two turns of a key, every other key of its priority that still waits has had one."""
    tickets = [Ticket(key, priority) for key, priority in wanted]
    turns = served(filled(*tickets))
    assert [ticket.priority for ticket in turns] == sorted((t.priority for t in tickets), reverse=True)
    for at, ticket in enumerate(turns):
        later = [
            n for n in range(at + 1, len(turns)) if (turns[n].key, turns[n].priority) == (ticket.key, ticket.priority)
        ]
        if not later:
            continue
        between = {other.key for other in turns[at + 1 : later[0]]}
        after = {other.key for other in turns[later[0] :] if other.priority == ticket.priority} - {ticket.key}
        assert after <= between
    for key in "abcd":
        for priority in (-1, 0, 1):
            mine = [ticket for ticket in tickets if (ticket.key, ticket.priority) == (key, priority)]
            assert [ticket for ticket in turns if ticket in mine] == mine
