"""Who is next for a backend that can do only a few at once: higher priority first, then fair between keys. Pure."""

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One place in the queue."""

    key: str
    priority: int = 0


class FairQueue:
    """Tickets as they will be served: by priority, within it one of each key in turn, within a key as they came."""

    __slots__ = ("_levels", "_size")

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, deque[Ticket]]] = {}
        self._size = 0

    def push(self, ticket: Ticket) -> None:
        """Join at the end of the key's own line."""
        self._levels.setdefault(ticket.priority, OrderedDict()).setdefault(ticket.key, deque()).append(ticket)
        self._size += 1

    def pop(self) -> Ticket | None:
        """Take the next ticket; its key goes to the back of the round."""
        if not self._levels:
            return None
        level = max(self._levels)
        lines = self._levels[level]
        key, line = next(iter(lines.items()))
        ticket = line.popleft()
        lines.move_to_end(key)
        self._drop_empty(level, key)
        self._size -= 1
        return ticket

    def remove(self, ticket: Ticket) -> bool:
        """Give a place up; false when it had been served already."""
        lines = self._levels.get(ticket.priority)
        line = lines.get(ticket.key) if lines is not None else None
        if line is None or ticket not in line:
            return False
        line.remove(ticket)
        self._drop_empty(ticket.priority, ticket.key)
        self._size -= 1
        return True

    def position(self, ticket: Ticket) -> int:
        """How many will be served up to and with this ticket, if nobody else comes: 1 is next."""
        ahead = sum(
            len(line) for level, lines in self._levels.items() if level > ticket.priority for line in lines.values()
        )
        lines = self._levels[ticket.priority]
        rounds = lines[ticket.key].index(ticket)
        keys = list(lines)
        mine = keys.index(ticket.key)
        for place, line in enumerate(lines.values()):
            ahead += min(len(line), rounds + (1 if place < mine else 0)) if place != mine else rounds
        return ahead + 1

    def __len__(self) -> int:
        return self._size

    def _drop_empty(self, level: int, key: str) -> None:
        lines = self._levels[level]
        if not lines[key]:
            del lines[key]
        if not lines:
            del self._levels[level]
