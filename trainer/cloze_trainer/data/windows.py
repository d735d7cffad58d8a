"""The parts in which longer texts are read than a model takes: as servers cut them."""

# Of a window's room, what neighbours share.
_OVERLAP = 4


def windows(length: int, room: int) -> list[range]:
    """Tokens of each part: all but the last have `room`, and neighbours share a quarter of it."""
    if length <= room:
        return [range(length)]
    overlap = room // _OVERLAP
    return [range(start, min(start + room, length)) for start in range(0, length - overlap, room - overlap)]


def parts(length: int, room: int, *, whole: bool) -> list[range]:
    """What is read of a text: all of it, in windows, or its beginning."""
    return windows(length, room) if whole else [range(min(length, room))]
