"""Changes to bytes, to JSON and to text, each drawn from a seeded generator."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from copy import deepcopy
from typing import Any

_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 257, 32767, 32768, 65535, 65536, 2**24)
_NUMBERS += (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 2, -1, 3.5, -0.0, 1e308, 1e-308, 10**30)
_VALUES += (float("nan"), float("inf"), float("-inf"), 2**31, 2**32, 2**63, 2**64, -(2**63))
_VALUES += ("", " ", "0", "-1", "NaN", "1e999", "x" * 3000, "\0", "\ud800", "é", "..", ".")
_VALUES += ("../../etc/passwd", "/dev/zero", "/dev/full", "a/../../b", "C:\\x", "pickle", "zlib")
_VALUES += ("|O", "<f8", "<M8[ns]", "float32", "uint8", "object", "blosc", "numcodecs.pickle")
_VALUES += ([], {}, [[]], [None], {"": ""}, [0] * 300, [2**31] * 3, [1, 1], [3, 9, 10], [-1, 2])
_WORDS = (b"..", b"/", b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"]", b"<", b">", b"&amp;")
_WORDS += (b"1e999", b"../../../etc/passwd", b"<!DOCTYPE x>", b"2147483648", b"-1", b"nan")


def mutate_bytes(rng: random.Random, content: bytes, *, hot: int = 512) -> bytes:
    """One to six changes; most fall on the first or the last `hot` bytes, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        _CHANGES[rng.randrange(len(_CHANGES))](rng, changed, _place(rng, len(changed), hot))
    return bytes(changed)


def _place(rng: random.Random, length: int, hot: int) -> int:
    if not length:
        return 0
    where = rng.random()
    near = rng.randrange(min(hot, length))
    return near if where < 0.5 else length - 1 - near if where < 0.75 else rng.randrange(length)


def _flip(rng: random.Random, data: bytearray, at: int) -> None:
    if data:
        data[at] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, at: int) -> None:
    if data:
        data[at] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray, at: int) -> None:
    size, form = rng.choice(((1, "B"), (2, "H"), (4, "I"), (4, "I"), (8, "Q")))
    order = rng.choice("<<>")
    at -= at % rng.choice((1, 2, 4))
    if rng.random() < 0.3 and at + size <= len(data):  # next to what is there
        (value,) = struct.unpack_from(order + form, data, at)
        value += rng.choice((-8, -1, 1, 8))
    else:
        value = rng.choice(_NUMBERS)
    data[at : at + size] = struct.pack(order + form, value % 256**size)


def _cut(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at:]


def _remove(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.choice((1, 2, 4, 12, 64))]


def _repeat(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + rng.choice((1, 4, 12, 64, 1024))]


def _word(rng: random.Random, data: bytearray, at: int) -> None:
    word = rng.choice(_WORDS)
    data[at : at + (len(word) if rng.random() < 0.5 else 0)] = word


def _move(rng: random.Random, data: bytearray, at: int) -> None:
    other, length = _place(rng, len(data), 512), rng.choice((1, 2, 4, 8, 12, 24))
    data[at : at + length] = data[other : other + length]


_CHANGES = (_flip, _set, _number, _number, _number, _cut, _remove, _repeat, _word, _move)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Another tree: one to three of its values replaced, removed, doubled or changed inside."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutate_node(rng, value)
    return value


def _mutate_node(rng: random.Random, root: Any) -> Any:
    if not root or not isinstance(root, (dict, list)):
        return deepcopy(rng.choice(_VALUES))
    holder, key = _spot(rng, root)
    action = rng.random()
    if action < 0.15:
        del holder[key]
    elif action < 0.25:
        other, name = _spot(rng, root)
        holder[key] = deepcopy(other[name])
    elif action < 0.3 and isinstance(holder, dict):
        holder[rng.choice(("", "extra", "shape", "0", "__proto__"))] = deepcopy(holder[key])
    elif action < 0.35:
        holder[key] = [holder[key]]
    elif action < 0.6:
        holder[key] = _near(rng, holder[key])
    else:
        holder[key] = deepcopy(rng.choice(_VALUES))
    return root


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type, somewhat different; JSON within a string is changed inside."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2**20, value * 2**40, str(value)))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, value / 1e300, str(value), math.nan))
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return mutate_bytes(rng, value.encode("utf-8", "replace")).decode("latin-1")
        return json.dumps(mutate_json(rng, inner)) if isinstance(inner, (dict, list)) else value * 2
    if isinstance(value, list):
        return rng.choice((value[::-1], value + value, value[:1], value * 50))
    return {} if value else None


def _spot(rng: random.Random, root: Any) -> tuple[Any, Any]:
    """A container somewhere in the tree and one of its keys."""
    node = root
    while True:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        inner = node[key]
        if not inner or not isinstance(inner, (dict, list)) or rng.random() < 0.2:
            return node, key
        node = inner


def mutate_text(rng: random.Random, text: str) -> str:
    """Values between quotes or behind "=" replaced, else changed like bytes."""
    found = list(re.finditer(r'(?<=")[^"\n]*(?=")|(?<==)[^"\n=]+$', text, re.MULTILINE))
    if not found or rng.random() < 0.3:
        return mutate_bytes(rng, text.encode()).decode("latin-1")
    chosen = rng.sample(found, min(len(found), rng.choice((1, 1, 2))))
    for match in sorted(chosen, key=lambda match: -match.start()):
        old = match[0]
        if rng.random() < 0.5:
            new = str(rng.choice(_VALUES)).encode("utf-8", "replace").decode()
        else:
            new = mutate_bytes(rng, old.encode()).decode("latin-1")
        text = text[: match.start()] + new + text[match.end() :]
    return text
