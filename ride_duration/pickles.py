"""Pickles read as data: a small machine for the opcodes that plain data and scikit-learn's estimators need.

Python's own unpickler calls what a pickle names, and even with `find_class` restricted, a few bytes make it allocate
gigabytes or hash for ever. This one calls nothing: where a pickle would import, call or fill an object, it only writes that
down as an `Opaque`. Every step costs at most the bytes that it reads, so time and memory are bounded by the file's size.
"""

import struct
from collections.abc import Callable, Collection
from typing import Any

MAX_OPCODES = 1_000_000


class PickleError(ValueError):
    """A pickle that this reader refuses, and why."""


class Opaque:
    """A thing that a pickle names but that was not made: its dotted name, what it would be called with, and its state."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None


_MARK = object()

_CONSTANTS: dict[int, Callable[[], Any]] = {
    ord("N"): lambda: None,
    0x88: lambda: True,
    0x89: lambda: False,
    ord("]"): list,
    ord("}"): dict,
    ord(")"): tuple,
    ord("("): lambda: _MARK,
}
_NUMBERS = {
    ord("J"): struct.Struct("<i"),
    ord("K"): struct.Struct("<B"),
    ord("M"): struct.Struct("<H"),
    ord("G"): struct.Struct(">d"),
}
_LENGTHS = {1: struct.Struct("<B"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_BLOBS: dict[int, tuple[struct.Struct, Callable[[bytes], Any]]] = {
    ord("X"): (_LENGTHS[4], bytes.decode),
    0x8C: (_LENGTHS[1], bytes.decode),
    0x8D: (_LENGTHS[8], bytes.decode),
    ord("B"): (_LENGTHS[4], bytes),
    ord("C"): (_LENGTHS[1], bytes),
    0x8E: (_LENGTHS[8], bytes),
    0x96: (_LENGTHS[8], bytes),
    0x8A: (_LENGTHS[1], lambda digits: int.from_bytes(digits, "little", signed=True)),
}
_MEMO_GETS = {ord("h"): _LENGTHS[1], ord("j"): _LENGTHS[4]}
_MEMO_PUTS = {ord("q"): _LENGTHS[1], ord("r"): _LENGTHS[4]}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_PROTO, _FRAME, _STOP = 0x80, 0x95, ord(".")


def read_pickle(data: bytes, allowed: Collection[str]) -> Any:
    """Read the one pickle in `data`, of protocol 3, 4 or 5, calling nothing.

    Parameters
    ----------
    data
        The pickle's bytes.
    allowed
        Dotted names that it may mention; they come back as `Opaque`, never as the thing named.

    Returns
    -------
    None, bool, int, float, str, bytes, list, tuple, dict with string keys, and `Opaque`

    Raises
    ------
    PickleError
        If it is cut short, mentions another name, or holds anything else.
    """
    try:
        return _read(data, allowed)
    except (struct.error, IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError("it is cut short or damaged") from None


def _read(data: bytes, allowed: Collection[str]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    at = 0

    def number(layout: struct.Struct) -> Any:
        nonlocal at
        (value,) = layout.unpack_from(data, at)
        at += layout.size
        return value

    def line() -> str:
        nonlocal at
        begin, at = at, data.index(b"\n", at) + 1
        return data[begin : at - 1].decode()

    def since_mark() -> list[Any]:
        mark = len(stack) - 1
        while stack[mark] is not _MARK:  # IndexError when there is none
            mark -= 1
        items = stack[mark + 1 :]
        del stack[mark:]
        return items

    def named(module: Any, name: Any) -> Opaque:
        full = f"{module}.{name}"
        if not (isinstance(module, str) and isinstance(name, str) and full in allowed):
            raise PickleError(f"it names {full[:80]!r}, which a model of this kind has no use for; nothing was executed")
        return Opaque(full)

    def fill(target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise PickleError("it has a dict whose keys are not strings")
        target.update(zip(items[::2], items[1::2], strict=True))

    for _ in range(MAX_OPCODES):
        opcode = data[at]
        at += 1
        if opcode in _BLOBS:
            layout, convert = _BLOBS[opcode]
            begin = at + layout.size
            at = begin + layout.unpack_from(data, at)[0]
            if at > len(data):
                raise PickleError("it is cut short, or says that it is longer than it is")
            stack.append(convert(data[begin:at]))
        elif opcode == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif opcode in _NUMBERS:
            layout = _NUMBERS[opcode]
            stack += layout.unpack_from(data, at)
            at += layout.size
        elif opcode in _MEMO_GETS:
            stack.append(memo[number(_MEMO_GETS[opcode])])
        elif opcode in _MEMO_PUTS:
            memo[number(_MEMO_PUTS[opcode])] = stack[-1]
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode]())
        elif opcode == ord("e"):  # APPENDS
            items = since_mark()
            list.extend(stack[-1], items)
        elif opcode == ord("a"):  # APPEND
            item = stack.pop()
            list.append(stack[-1], item)
        elif opcode == ord("u"):  # SETITEMS
            items = since_mark()
            fill(stack[-1], items)
        elif opcode == ord("s"):  # SETITEM
            items = stack[-2:]
            del stack[-2:]
            fill(stack[-1], items)
        elif opcode in _TUPLES:
            size = _TUPLES[opcode]
            if len(stack) < size:
                raise IndexError
            stack[-size:] = [tuple(stack[-size:])]
        elif opcode == ord("t"):  # TUPLE
            stack.append(tuple(since_mark()))
        elif opcode == 0x93:  # STACK_GLOBAL
            name = stack.pop()
            stack.append(named(stack.pop(), name))
        elif opcode == ord("c"):  # GLOBAL
            module = line()
            stack.append(named(module, line()))
        elif opcode in (ord("R"), 0x81):  # REDUCE, NEWOBJ
            args, made = stack.pop(), stack.pop()
            if not isinstance(made, Opaque) or made.args is not None or not isinstance(args, tuple):
                raise PickleError("it calls what is not a class or function")
            stack.append(Opaque(made.name, args))
        elif opcode == ord("b"):  # BUILD
            state = stack.pop()
            if not isinstance(stack[-1], Opaque) or stack[-1].args is None or stack[-1].state is not None:
                raise PickleError("it fills what is not a new object")
            stack[-1].state = state
        elif opcode == _FRAME:
            if number(_LENGTHS[8]) > len(data) - at:
                raise PickleError("it is cut short, or says that it is longer than it is")
        elif opcode == _PROTO:
            number(_LENGTHS[1])
        elif opcode == _STOP:
            if len(stack) != 1 or stack[0] is _MARK or at != len(data):
                raise PickleError("it is not one pickle and nothing else")
            return stack[0]
        else:
            raise PickleError(f"it uses opcode {bytes([opcode])!r}, which a model pickled with protocol 3 to 5 has no use for")
    raise PickleError(f"it has more than {MAX_OPCODES:,} opcodes")
