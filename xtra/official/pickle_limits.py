"""Limits on the objects of a pickle, checked by reading its instructions without running them.

Python's own reader allocates what a length or a memo index asks for before checking that the file has it, and hashing a
tuple nested in 200,000 tuples overflows the process's stack. So lengths, memo indexes, the number of objects and their
depth are checked first. `measure` then checks the loaded objects, where a list may contain itself.
"""

from __future__ import annotations

import pickletools
from typing import Any, NamedTuple

MAX_BYTES = 128 << 20  # of the pickle without its tensors; the largest official one has 100 KB
MAX_NODES = 10_000_000  # objects in one file
MAX_DEPTH = 1_000  # of nested containers

_LINE, _EIGHT = -1, -5  # pickletools' codes for arguments without a fixed size
_WIDTHS = {-2: 1, -3: 4, -4: 4, _EIGHT: 8}
_TWO_LINES = b"ci"  # GLOBAL and INST
_MARK, _DUP, _STOP, _MEMOIZE = b"(2.\x94"
_PUTS, _GETS = b"pqr", b"ghj"
_ADDS = b"aesu\x90b"  # add to the object below the ones they take
_WRAPS = b"ltd\x85\x86\x87\x91"


class _Op(NamedTuple):
    argument: int  # its size, or the code of its encoding
    takes: int  # objects below the mark, or in total
    marked: bool  # also takes all objects above the mark
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
    """Raises ValueError for bytes that are not a pickle, that ask for impossible lengths or memo entries, or that make
    more than MAX_NODES objects or exceed MAX_DEPTH."""
    depths: list[int] = []  # of the objects on the stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    at, left = 0, MAX_NODES
    while at < len(pickled):
        code = pickled[at]
        op = _OPS.get(code)
        if op is None:
            raise ValueError(f"byte {at} is not a pickle instruction")
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
    """The depth of the object that an instruction makes from objects of these depths."""
    if code in _ADDS and taken:
        return max(taken[0], 1 + max(taken[1:], default=0))
    return max(taken, default=0) + (code in _WRAPS)


def _end(pickled: bytes, begin: int, argument: int, two_lines: bool) -> int:
    """The end of an instruction's argument."""
    if argument >= 0:
        end = begin + argument
    elif argument == _LINE:
        end = _line(pickled, _line(pickled, begin) if two_lines else begin)
    else:
        body = begin + _WIDTHS[argument]
        end = body + int.from_bytes(pickled[begin:body], "little")
    if end > len(pickled):
        raise ValueError(f"it is cut short, or byte {begin} asks for more than the file has")
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
        raise ValueError(f"byte {begin} is not a memo index")
    return int(digits)


def measure(root: Any) -> None:
    """Raises ValueError if plain containers are nested deeper than MAX_DEPTH, or one contains itself.

    Every object is visited once, however many refer to it.
    """
    inside: set[int] = set()  # the containers on the path from the root
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
