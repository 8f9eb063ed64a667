"""How large the objects of a pickle would be, found by reading its instructions without running them.

The library's own reader allocates what a length or a memo index says before it looks whether the file has it, and the
hash of a tuple in 200,000 tuples overflows the stack of the process. So lengths, memo indexes, the number of objects
and their depth are checked first. `measure` then looks at what was read: there a list may be part of itself.
"""

from __future__ import annotations

import pickletools
from typing import Any, NamedTuple

MAX_BYTES = 128 << 20  # of the pickle without its tensors; the largest official one has 100 KB
MAX_NODES = 10_000_000  # objects of one file
MAX_DEPTH = 1_000  # of containers inside one another

_LINE, _EIGHT = -1, -5  # pickletools: how an argument of no fixed size begins
_WIDTHS = {-2: 1, -3: 4, -4: 4, _EIGHT: 8}
_TWO_LINES = b"ci"  # GLOBAL and INST
_MARK, _DUP, _STOP, _MEMOIZE = b"(2.\x94"
_PUTS, _GETS = b"pqr", b"ghj"
_ADDS = b"aesu\x90b"  # to the object below what they take
_WRAPS = b"ltd\x85\x86\x87\x91"


class _Op(NamedTuple):
    argument: int  # its size, or how that is said
    takes: int  # objects below the mark, or in all
    marked: bool  # and all above the mark
    gives: bool


def _ops() -> dict[int, _Op]:
    found = {}
    for op in pickletools.opcodes:
        takes = [kind.name for kind in op.stack_before]
        marked = "mark" in takes
        fixed = takes.index("mark") if marked else len(takes)
        found[ord(op.code)] = _Op(op.arg.n if op.arg else 0, fixed, marked, bool(op.stack_after))
    return found


_OPS = _ops()


def check(pickled: bytes) -> None:
    """Raises ValueError for bytes that are no pickle, that ask for bytes or memo entries which they cannot have, or
    that make more than MAX_NODES objects or a depth of more than MAX_DEPTH."""
    depths: list[int] = []  # of the objects on the stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    at, left = 0, MAX_NODES
    while at < len(pickled):
        code = pickled[at]
        op = _OPS.get(code)
        if op is None:
            raise ValueError(f"byte {at} is no instruction of a pickle")
        begin, at = at + 1, _end(pickled, at + 1, op.argument, code in _TWO_LINES)
        left -= 1
        if left < 0:
            raise ValueError(f"it makes more than {MAX_NODES:,} objects")
        if code == _STOP:
            return
        if code == _MARK:
            marks.append(len(depths))
        elif code in _GETS:
            depths.append(memo.get(_number(pickled, begin, at, code == _GETS[0]), 0))
        elif code in _PUTS or code == _MEMOIZE:
            index = len(memo) if code == _MEMOIZE else _number(pickled, begin, at, code == _PUTS[0])
            if index > len(pickled):
                raise ValueError(f"it has memo index {index} in {len(pickled)} bytes")
            memo[index] = depths[-1] if depths else 0
        elif code == _DUP:
            depths.append(depths[-1] if depths else 0)
        else:
            first = marks.pop() if op.marked and marks else len(depths)
            first = max(0, first - op.takes)
            taken = depths[first:]
            del depths[first:]
            if op.gives:
                depths.append(_depth(code, taken))
                if depths[-1] > MAX_DEPTH:
                    raise ValueError(f"its objects are more than {MAX_DEPTH:,} deep")
    raise ValueError("its end is missing")


def _depth(code: int, taken: list[int]) -> int:
    """Of what an instruction makes of objects of these depths."""
    if code in _ADDS and taken:
        return max(taken[0], 1 + max(taken[1:], default=0))
    return max(taken, default=0) + (code in _WRAPS)


def _end(pickled: bytes, begin: int, argument: int, two_lines: bool) -> int:
    """Where an instruction's argument ends."""
    if argument >= 0:
        end = begin + argument
    elif argument == _LINE:
        end = _line(pickled, _line(pickled, begin) if two_lines else begin)
    else:
        body = begin + _WIDTHS[argument]
        end = body + int.from_bytes(pickled[begin:body], "little")
    if end > len(pickled):
        raise ValueError(f"it is cut short, or byte {begin} asks for more than there is")
    return end


def _line(pickled: bytes, begin: int) -> int:
    end = pickled.find(b"\n", begin) + 1
    return end or len(pickled) + 1


def _number(pickled: bytes, begin: int, end: int, text: bool) -> int:
    """A memo index."""
    if not text:
        return int.from_bytes(pickled[begin:end], "little")
    digits = pickled[begin:end].strip()
    if not digits.isdigit() or len(digits) > 18:
        raise ValueError(f"byte {begin} is no memo index")
    return int(digits)


def measure(root: Any) -> None:
    """Raises ValueError where plain containers are more than MAX_DEPTH inside one another, or one is inside itself.

    Every object is looked at once, however many refer to it.
    """
    inside: set[int] = set()  # the containers from the root to here
    done: set[int] = set()
    path: list[tuple[int, Any]] = [(id(root), iter([root]))]
    while path:
        for item in path[-1][1]:
            if not isinstance(item, dict | list | tuple | set | frozenset) or id(item) in done:
                continue
            if id(item) in inside:
                raise ValueError(f"a {type(item).__name__} in it contains itself")
            if len(path) > MAX_DEPTH:
                raise ValueError(f"its objects are more than {MAX_DEPTH:,} deep")
            inside.add(id(item))
            path.append((id(item), iter([*item, *item.values()] if isinstance(item, dict) else item)))
            break
        else:
            number, _ = path.pop()
            inside.discard(number)
            done.add(number)
