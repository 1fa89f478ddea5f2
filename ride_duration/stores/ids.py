"""The ids of rides that have none of their own: every door that reads a store calls a ride the same."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ride_duration.stores import NUMBERS

_ID_BYTES = 10
_TIME_BYTES = 4


class Ids:
    """The ids of an interval's rides: their own, or a digest of what is known before a ride ends.

    A digest begins with the time, so that a database adds it at the end of its index. Rides that are alike to the second are
    numbered; they come one after the other, sorted by time.
    """

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._second = -1

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """Ids as text, one a row."""
        own, pickup = batch["ride_id"], batch["pickup"].to_numpy()
        absent = pc.equal(own, "")
        if not pc.any(absent).as_py():
            return own
        digests = pickup.astype(np.uint64)
        for name in NUMBERS:
            digests = _mixed(digests ^ batch[name].to_numpy().view(np.uint64))
        digests = self._numbered(digests, pickup)
        made = np.empty((len(batch), _ID_BYTES), np.uint8)
        made[:, :_TIME_BYTES] = _big_endian(pickup.astype(np.uint64))[:, -_TIME_BYTES:]
        made[:, _TIME_BYTES:] = _big_endian(digests)[:, _TIME_BYTES - _ID_BYTES :]
        text = made.tobytes().hex().encode()
        offsets = np.arange(0, 2 * _ID_BYTES * len(batch) + 1, 2 * _ID_BYTES, dtype=np.int32)
        digest = pa.StringArray.from_buffers(len(batch), pa.py_buffer(offsets), pa.py_buffer(text))
        return digest if pc.all(absent).as_py() else pc.if_else(absent, digest, own)

    def _numbered(self, digests: NDArray[np.uint64], pickup: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Digests that are all different: the second of the same is mixed with a 1, the third with a 2."""
        if not len(digests):
            return digests
        order = np.argsort(digests, kind="stable")
        ordered = digests[order]
        first = np.r_[True, ordered[1:] != ordered[:-1]]
        start = np.flatnonzero(first)
        number = np.arange(len(ordered)) - np.repeat(start, np.diff(np.r_[start, len(ordered)]))
        numbers = np.empty(len(digests), np.int64)
        numbers[order] = number
        for row in np.flatnonzero(pickup == self._second):  # those that the last batch has begun
            numbers[row] += self._last.get(int(digests[row]), 0)
        if self._second != pickup[-1]:
            self._second, self._last = int(pickup[-1]), {}
        last = pickup == self._second
        # the last of each is numbered highest
        self._last |= dict(zip(digests[last].tolist(), (numbers[last] + 1).tolist(), strict=True))
        numbered = digests.copy()
        for row in np.flatnonzero(numbers):
            numbered[row] = _mixed(digests[row : row + 1] + np.uint64(numbers[row]))[0]
        return numbered


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of 64 spread over all: the finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _big_endian(x: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The bytes of each, shape (x, 8)."""
    return x.byteswap().view(np.uint8).reshape(len(x), 8)
