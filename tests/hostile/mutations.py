"""Valid files -> damaged and forged ones: bits flipped, parts cut, spliced and repeated, fields rewritten."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

_VALUE = re.compile(rb'-?\d[\d.eE+-]*|\\?"[^"\\{}]*\\?"(?=[,}\]])|true|false|null')
"""A value of JSON or TOML, also where the JSON stands inside a text of other JSON."""
FORGED = (
    b"-1", b"0", b"1", b"3", b"1.5", b"1e999", b"-1e308", b"NaN", b"Infinity", b"9223372036854775807",
    b"18446744073709551616", b"1" + b"0" * 400, b"9" * 5000, b"null", b"true", b"[]", b"{}", b"[1,2]",
    b'{"a":1}', b"[" * 70 + b"]" * 70, b'""', b'"../../x"', b'"/dev/zero"', b'"<script>alert(1)</script>"',
    b'"\\u001b[31mred"', b'"\\ud800"', b'"\\u202egnp"', b'"a\\nb\\nc"', b'"F64"', b'"weight"', b'"__class__"',
)  # fmt: skip
"""What a field is rewritten to."""
_NUMBERS = tuple(
    number.to_bytes(width, order, signed=number < 0)
    for number in (-1, 0, 1, 2**31 - 1)
    for width in (4, 8)
    for order in ("little", "big")
)


@dataclass(frozen=True)
class Change:
    """One damage."""

    kind: str
    where: float
    """A place in the file, from 0 to 1."""
    how: int
    """What is done there, as its kind understands it."""


CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(("field", "flip", "number", "cut", "drop", "repeat", "member", "field")),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 2**16 - 1),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, changes: Sequence[Change]) -> bytes:
    """Return the file with all changes made, one after the other."""
    for change in changes:
        content = _KINDS[change.kind](content, change)
    return content


def _flip(content: bytes, change: Change) -> bytes:
    place = int(change.where * len(content))
    flipped = bytes([content[place] ^ (1 << change.how % 8)]) if content else b""
    return content[:place] + flipped + content[place + 1 :]


def _number(content: bytes, change: Change) -> bytes:
    place, number = int(change.where * len(content)), _NUMBERS[change.how % len(_NUMBERS)]
    return content[:place] + number + content[place + len(number) :]


def _cut(content: bytes, change: Change) -> bytes:
    return content[: int(change.where * len(content))]


def _drop(content: bytes, change: Change) -> bytes:
    place = int(change.where * len(content))
    return content[:place] + content[place + 1 + change.how % 64 :]


def _repeat(content: bytes, change: Change) -> bytes:
    place = int(change.where * len(content))
    return content[:place] + content[place : place + 1 + change.how % 256] * 2 + content[place:]


def _field(content: bytes, change: Change) -> bytes:
    """Rewrite a value; the header of a safetensors file keeps its true length."""
    found = list(_VALUE.finditer(content[:100_000]))
    if not found:
        return content
    value, forged = found[int(change.where * len(found))], FORGED[change.how % len(FORGED)]
    if value.group().startswith(b"\\"):
        forged = forged.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    new = content[: value.start()] + forged + content[value.end() :]
    length = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 8 <= value.start() < 8 + length <= len(content):
        return (length + len(new) - len(content)).to_bytes(8, "little") + new[8:]
    return new


def _member(content: bytes, change: Change) -> bytes:
    """Damage one member of a zip file, and pack it anew, so that its checksum holds."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(item.filename, archive.read(item)) for item in archive.infolist()]
    except Exception:  # no zip file, or one that an earlier change broke
        return _flip(content, change)
    chosen = change.how % len(members) if members else 0
    inner = Change("", change.where, change.how // 8)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i, (name, data) in enumerate(members):
            kind = (_flip, _number, _drop, _repeat)[change.how % 4]
            archive.writestr(zipfile.ZipInfo(name), kind(data, inner) if i == chosen else data)
    return packed.getvalue()


_KINDS: dict[str, Callable[[bytes, Change], bytes]] = {
    "field": _field,
    "flip": _flip,
    "number": _number,
    "cut": _cut,
    "drop": _drop,
    "repeat": _repeat,
    "member": _member,
}
