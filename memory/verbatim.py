"""Verbatim runs: which parts of a text stand in some files, byte for byte, and where.

The files and the text are sorted together, by all that follows each byte (a suffix array). A byte of the text then has
beside it the two places in the files that share most of what follows it. No hash is involved, and no text is slow.
"""
import bisect

import numpy as np

from memory.output import progress

END_OF_TEXT, END_OF_FILE, BYTES = 0, 1, 2  # symbols; byte b is BYTES + b. No run crosses an end
BITS = 9  # of a symbol
PACKED = 63 // BITS  # symbols that an int64 holds
COST = 90  # bytes of memory for each byte that is indexed


def suffix_order(symbols, longest):
    """The indices of `symbols`, int16 (n,), in the order of what follows from each on, as far as `longest` symbols
    tell: int64 (n,).

    Prefix doubling (Manber & Myers 1993): the order by h symbols gives that by 2h, and only what is still tied is
    sorted again (Larsson & Sadakane 1999).
    """
    n = len(symbols)
    key, padded = np.zeros(n, dtype=np.int64), np.concatenate([symbols, np.zeros(PACKED, dtype=symbols.dtype)])
    for k in range(PACKED):
        key = key << BITS | padded[k:k + n]
    order, slots = np.arange(n), np.arange(n)  # slots: those of `order` whose symbols are not told apart yet
    rank, known = np.zeros(n, dtype=np.int64), PACKED
    with progress(total=n, desc="indexing", unit="B", unit_scale=True) as bar:
        while True:
            by_key = np.argsort(key)
            key, tied = key[by_key], order[slots][by_key]
            opens = np.concatenate([[True], key[1:] != key[:-1]])  # a group of equal ones
            order[slots] = tied
            rank[tied] = slots[np.maximum.accumulate(np.where(opens, np.arange(len(slots)), 0))]
            alone = opens & np.concatenate([opens[1:], [True]])
            slots = slots[~alone]
            bar.update(int(alone.sum()))
            if known >= longest or not len(slots):
                return order
            after = order[slots] + known
            key = rank[order[slots]] * (n + 1) + np.where(after < n, rank[np.minimum(after, n - 1)] + 1, 0)
            known *= 2


def shared(symbols, text, places):
    """How many symbols from text + i on are those from places[i] on, for each i: int64 (len(places),). At i + 1 it is
    one less than at i, or more (Kasai et al. 2001), so it takes no longer than to read the text twice."""
    result, length, symbols = np.zeros(len(places), dtype=np.int64), 0, memoryview(symbols)
    for i, place in enumerate(progress(places.tolist(), desc="comparing", unit="B", unit_scale=True)):
        length = max(0, length - 1)
        while symbols[place + length] == symbols[text + i + length]:
            length += 1
        result[i] = length
    return result


class Matches:
    """Where the bytes `text` stand in `files`, a list of bytes.

    length: how many bytes from each byte of the text on stand somewhere in the files too, int64 (len(text),).
    at: a place where they stand, an index of all the files' bytes, int64 (len(text),).
    """

    def __init__(self, files, text):
        ends = np.cumsum([len(file) + 1 for file in files], dtype=np.int64)
        self.starts, self.first = ends - [len(file) + 1 for file in files], int(ends[-1]) if files else 0
        self.symbols = np.full(self.first + len(text) + 1, END_OF_FILE, dtype=np.int16)
        for start, part in [*zip(self.starts, files), (self.first, text)]:
            self.symbols[start:start + len(part)] = np.frombuffer(part, np.uint8).astype(np.int16) + BYTES
        self.symbols[-1] = END_OF_TEXT
        order = suffix_order(self.symbols, len(text) + 1)
        of_files = order < self.first
        # of each byte of the text: the first in the files' order that comes after it
        slot, after = np.argsort(order[~of_files])[:-1], np.cumsum(of_files)[~of_files]
        self.after = after[slot]
        nothing = [len(self.symbols) - 1]  # shares no symbol with any
        self.order = order[of_files]
        around = np.concatenate([nothing, self.order, nothing])
        before, behind = around[self.after], around[self.after + 1]
        lengths = shared(self.symbols, self.first, before), shared(self.symbols, self.first, behind)
        self.length, self.at = np.maximum(*lengths), np.where(lengths[0] >= lengths[1], before, behind)

    def runs(self, least):
        """All runs of at least `least` bytes that cannot be made longer, as int64 arrays (start, end)."""
        opens = self.length > np.concatenate([[0], self.length])[:-1] - 1  # else the run began before
        start = np.flatnonzero(opens & (self.length >= least))
        return start, start + self.length[start]

    def place(self, at):
        """(index of the file, byte in it) of an index of all the files' bytes, or arrays of them."""
        file = np.searchsorted(self.starts, at, side="right") - 1
        return file, at - self.starts[file]

    def places(self, start, end):
        """Every place of text[start:end], which stands somewhere: int64 arrays (index of the file, byte in it), sorted.
        """
        run, size = self.symbols[self.first + start:self.first + end], end - start

        def elsewhere(slot):
            at = self.order[slot]
            return not np.array_equal(self.symbols[at:at + size], run)

        at, n = int(self.after[start]), len(self.order)  # all places are around this slot
        last = at + bisect.bisect_left(range(at, n), True, key=elsewhere)
        first = at - bisect.bisect_left(range(at - 1, -1, -1), True, key=elsewhere)
        return self.place(np.sort(self.order[first:last]))


def merge(runs, size):
    """Of runs that overlap, those that cover what no longer one does; of equally long ones, as few as cover the same.

    runs: (start, end) arrays of a text of `size` bytes, in their order; none lies in another. Returns ([(start, end)],
    in their order, and the owner of each byte of the text: the index of the longest run that covers it, or -1; int64
    (size,)).
    """
    starts, ends = (bounds.tolist() for bounds in runs)
    by_length = sorted(range(len(starts)), key=lambda i: starts[i] - ends[i])
    owner, kept = np.full(size, -1), []
    for i, following in zip(by_length, [*by_length[1:], None]):
        # Others own what they hold of it from its start on and up to its end: so what is free is in one piece.
        free, stop = starts[i], ends[i]
        while free < stop and owner[free] >= 0:
            free = ends[owner[free]]
        if free >= stop:
            continue
        alike = following is not None and ends[following] - starts[following] == ends[i] - starts[i]
        if alike and starts[following] <= free:  # that one reaches further, and covers the same
            continue
        while owner[stop - 1] >= 0:
            stop = starts[owner[stop - 1]]
        owner[free:stop] = i
        kept.append(i)
    kept.sort()
    return [(starts[i], ends[i]) for i in kept], np.where(owner < 0, -1, np.searchsorted(kept, owner))
