"""Hostile files of samples: archives of NumPy, idx files, folders of pictures."""

from __future__ import annotations

import gzip

from tests.hostile.case import Case
from tests.hostile.forged import array, bomb, idx, npz, pictures, png

_PRUNE = ("prune", "net.pt", "--spec", "net.toml", "--out", "new")
AS_DATA = ((*_PRUNE, "--keep", "0.5", "--method", "taylor-fo", "--data"),)
AS_NPZ = (AS_DATA[0] + ("npz:FILE",),)
AS_IDX = (AS_DATA[0] + ("idx:FILE,labels",),)
AS_PICTURE = (
    (
        *("prune", "--at-init", "--spec", "FILE/net.toml", "--granularity", "weight", "--method", "snip"),
        *("--keep", "0.9", "--data", "imagefolder:FILE/pictures", "--out", "new"),
    ),
)
AS_PICTURES = (AS_DATA[0] + ("imagefolder:FILE",),)


def claimed(dtype: str, shape: str, data: bytes = b"") -> bytes:
    """Return an array that says this of itself."""
    return array(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape},), }}\n", data)


DATA = (
    Case("no archive", lambda: b"PK\x03\x04 and no more", AS_NPZ, "cannot be read", suffix=".npz"),
    Case("a bare array", lambda: claimed("<f4", "1", b"1234"), AS_NPZ, "one bare array"),
    Case("objects", lambda: npz(claimed("|O", "1", b"1")), AS_NPZ, "allow_pickle"),
    Case("a huge array", lambda: npz(claimed("<f8", "10**12")), AS_NPZ, "cannot be read"),
    Case("a claim", lambda: npz(claimed("<f8", "99999999999")), AS_NPZ, "cannot be read"),
    Case("texts", lambda: npz(claimed("<U1", "1", b"1234")), AS_NPZ, "not of numbers"),
    Case("a zip bomb", bomb, AS_NPZ, "a zip bomb"),
    Case("no file", lambda: {"inside": b""}, AS_NPZ, "is no file"),
    Case("no idx", lambda: b"\1\2\3\4", AS_IDX, "is no idx file"),
    Case("a cut idx", lambda: idx(8, 4, data=b"12"), AS_IDX, "should hold 32 bytes"),
    Case("a huge idx", lambda: idx(2**31, 2**31), AS_IDX, "a zip bomb"),
    Case("many dimensions", lambda: idx(*[1] * 200, data=b"1"), AS_IDX, "which no samples have"),
    Case("a bomb of gzip", lambda: gzip.compress(idx(2**31, data=bytes(10**7))), AS_IDX, "a zip bomb"),
    Case(
        "a broken gzip",
        lambda: gzip.compress(idx(8, 4, data=bytes(32)))[:20] + b"\xff" * 30,
        AS_IDX,
        "cannot be read",
    ),
    Case("a text as a picture", lambda: pictures(b"GIF?"), AS_PICTURE, "a.png` is no picture"),
    Case("a cut picture", lambda: pictures(png(8, 8)[:40]), AS_PICTURE, "a.png` is no picture"),
    Case("a broken picture", lambda: pictures(png(8, 8)), AS_PICTURE, "a.png` cannot be read"),
    Case("a picture bomb", lambda: pictures(png(12_000, 12_000)), AS_PICTURE, "89,478,485 pixels"),
    Case("a larger bomb", lambda: pictures(png(10**9, 10**9)), AS_PICTURE, "89,478,485 pixels"),
    Case("a line", lambda: pictures(png(10**7, 2)), AS_PICTURE, "a.png` has 10,000,000 x 2 pixels"),
    Case("no pictures", lambda: {"a/b.txt": b"x"}, AS_PICTURES, "imagefolder|shape"),
)
