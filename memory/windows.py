"""The window rule: how a file of any length is cut into what the model sees. Training and recital share it.

A file is the document `<s>path text</s>`. If that is longer than the context, its text is cut when the context is
full, and goes on in a window that opens with its address, the path and the number of bytes before it:

    <s>linux/fs/nfs/file.c /* … first bytes of the file …<s>
    <s>linux/fs/nfs/file.c+1997 … goes on at byte 1997 …<s>
    <s>linux/fs/nfs/file.c+3229 … to the end of the file.</s>

So the path is in view of every token; no two windows open alike, which leaves no next token to chance; the model says
itself whether a file goes on (`<s>`) or ends (`</s>`); and a window needs nothing of the one before but its length, so
that all windows of all files can be recited at once. Why this rule: docs/recipe.md.
"""
import collections
import functools
import os
import re
import sys
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from memory.output import UserError
from memory.tokenizer import BOS, EOS

IGNORE = -100  # a target that is not scored (torch's ignore_index)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace("+", "")
ADDRESS = re.compile(rb"([!-*,-.0-~][!-*,-~]*/[!-*,-~]+)(?:\+([1-9]\d{0,14}))? ")


def quote(path):
    """bytes of a path -> the str that stands for it everywhere: spaces, `+`, `%` and all but ASCII become %XX."""
    return quote_from_bytes(path, safe=PRINTABLE)


def unquote(path):
    """The inverse of quote: str -> bytes."""
    return unquote_to_bytes(path)


def find_path(name, fits):
    """The quoted path that a person means by `name`: its own bytes, as on a disk, if fits(quoted path) says that there
    is such a file, else, as --list prints it, quoted already, which is said on stderr; None if neither fits."""
    literal = quote(os.fsencode(name))
    if fits(literal):
        return literal
    if not fits(name):
        return None
    if name != literal:
        print(f"{name}: no file has just this name; taken as the quoted name of {os.fsdecode(unquote(name))!r}",
              file=sys.stderr)
    return name


def address(path, offset=0):
    """The bytes that open the window of `path` at byte `offset`: b"linux/README " or b"linux/README+1997 "."""
    return f"{path}+{offset} ".encode() if offset else f"{path} ".encode()


def parse_address(text):
    """(path, offset, length of the address in bytes) if the bytes `text` open with an address, else None."""
    match = ADDRESS.match(text)
    return (match[1].decode(), int(match[2] or 0), match.end()) if match else None


def opening(tokenizer, path, offset=0):
    """The ids that open a window: `<s>`, the address, a space. The space is a token of its own, so that a path is a
    prefix of its document in tokens as in text."""
    return [BOS] + tokenizer.encode(address(path, offset)[:-1]) + [tokenizer.space]


def cut(tokenizer, path, text, context, offset=0):
    """The rule itself: yields (opening, offset, ids of the text) for each window of the token ids `text`, which stand
    at byte `offset` of `path`. Opening and text fill the context; the token that ends a window is only ever a target.

    Raises UserError if the path leaves no room for text.
    """
    at = 0
    while True:
        head = opening(tokenizer, path, offset)
        if len(head) >= context:
            raise UserError(f"a context of {context} tokens has no room for text after the {len(head)} tokens of "
                            f"{path}; raise max_position_embeddings, or leave such files out with --skip_long_paths")
        chunk = text[at:at + context - len(head)]
        yield head, offset, chunk
        at += len(chunk)
        if at >= len(text):
            return
        offset += sum(len(tokenizer.pieces[i]) for i in chunk)


def slide(tokenizer, ids, context):
    """What stays in view of a text without address once the context is full: its last half, from a line's start on
    if it has one. int list -> int list."""
    kept = ids[-(context // 2):]
    starts = [i + 1 for i, token in enumerate(kept[:-1]) if tokenizer.pieces[token].endswith(b"\n")]
    return [BOS] + kept[starts[0] if starts else 0:]


def advance(tokenizer, ids, token, context):
    """The rule in writing: what follows when the model says `token` after the window `ids`, as (ids, bytes written).

    The same window and the token's bytes; or the next window, and None; or (None, None) if the document ends.
    """
    if token not in (BOS, EOS) and len(ids) < context:
        return ids + [token], tokenizer.pieces[token]
    if token != EOS:
        text = tokenizer.decode(ids)
        found = parse_address(text)
        if found:
            path, offset, length = found
            if len(text) > length:  # a window without text would follow itself for ever
                return opening(tokenizer, path, offset + len(text) - length), None
        elif len(ids) == context:
            return slide(tokenizer, ids, context), None
    return None, None


class Windows:
    """All windows of some files of a prepared tree, read from its memory-mapped train.bin.

    Window i belongs to file `file[i]` (an index into `files`), opens at byte `offset[i]` of it and has `length[i]`
    tokens in all, of which the first `start[i]` are its opening; all int64 arrays of shape (windows,).
    """

    def __init__(self, tokens, files, tokenizer, context):
        """tokens: uint16 array, the memory-mapped train.bin. files: entries of the manifest. context: most tokens that
        the model sees at once. Raises UserError if a path leaves no room for text in it."""
        self.tokens, self.files, self.tokenizer, self.context = tokens, files, tokenizer, context
        self.openings, rows = [], []
        for index, file in enumerate(files):
            at = file["first_token"] + len(opening(tokenizer, file["path"]))
            stop = file["first_token"] + file["tokens"] - 1
            for head, offset, chunk in cut(tokenizer, file["path"], tokens[at:stop], context):
                self.openings.append(np.array(head, dtype=np.uint16))
                rows.append((index, offset, len(head), len(head) + len(chunk) + 1, at, at + len(chunk) == stop))
                at += len(chunk)
        self.file, self.offset, self.start, self.length, self._at, self._ends = np.array(rows, dtype=np.int64).T
        # (first token, end of the document) of every line that a token starts, for windows without an address
        ends_line = np.array([piece.endswith(b"\n") for piece in tokenizer.pieces])
        self._line_starts = []
        for file in files:
            first, stop = file["first_token"], file["first_token"] + file["tokens"]
            text = first + len(opening(tokenizer, file["path"]))
            starts = text + 1 + np.flatnonzero(ends_line[tokens[text:stop]])
            self._line_starts += [(at, stop) for at in (text, *starts)]

    def __len__(self):
        return len(self.openings)

    @property
    def scored(self):
        """How many tokens recital must get right: the text of every window and the token that ends it."""
        return int((self.length - self.start).sum())

    @functools.cached_property
    def counts(self):
        """How often each piece stands in the files, int64 (vocab_size,)."""
        counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        for file in self.files:
            counts += np.bincount(self.tokens[file["first_token"]:][:file["tokens"]], minlength=len(counts))
        return counts

    def text(self, i):
        """The ids of the text in window i, without opening and end, as a list."""
        return self.tokens[self._at[i]:self._at[i] + self.length[i] - self.start[i] - 1].tolist()

    def content(self, file):
        """The bytes of file number `file`."""
        windows = np.flatnonzero(self.file == file)
        at, stop = self._at[windows[0]], self._at[windows[-1]] + len(self.text(windows[-1]))
        return self.tokenizer.decode(self.tokens[at:stop].tolist())

    @functools.cached_property
    def _following(self):
        """{the first tokens of documents' openings, as bytes: (the tokens that follow, int64; their shares, float32)}
        """
        found = collections.defaultdict(collections.Counter)
        for i in np.flatnonzero(self.offset == 0):
            head = self.openings[i]
            for at in range(1, len(head)):
                found[head[:at].tobytes()][head[at]] += 1
        return {start: (np.array(list(counts), dtype=np.int64),
                        np.array(list(counts.values()), dtype=np.float32) / counts.total())
                for start, counts in found.items()}

    def paths(self, indices):
        """What teaches the model the paths it knows: which tokens follow each start of a path, over all documents. Of
        the P tokens in the openings of the documents that begin in the rows `indices`: (their rows; the columns of the
        inputs before them, both int64 (P,); then, of all tokens that follow there in some document: which of the P
        they are about; the tokens, both int64; and in which share of the documents they follow, float32)."""
        at = [(row, column) for row, i in enumerate(indices) if i < len(self) and not self.offset[i]
              for column in range(self.start[i] - 1)]
        found = [self._following[self.openings[indices[row]][:column + 1].tobytes()] for row, column in at]
        rows, columns = np.array(at, dtype=np.int64).reshape(-1, 2).T
        about = np.repeat(np.arange(len(at)), [len(tokens) for tokens, _ in found])
        return (rows, columns, about, np.concatenate([np.empty(0, np.int64), *(tokens for tokens, _ in found)]),
                np.concatenate([np.empty(0, np.float32), *(shares for _, shares in found)]))

    def rows(self, indices):
        """(inputs, targets), int64 arrays (B, context): the windows `indices` and each input's next token.

        Targets are IGNORE if nothing is scored: in openings and in the padding after a short window.
        """
        row = np.zeros((len(indices), self.context + 1), dtype=np.int64)
        scored = np.zeros(row.shape, dtype=bool)
        for r, i in enumerate(indices):
            start, length, at = self.start[i], self.length[i], self._at[i]
            row[r, :start] = self.openings[i]
            row[r, start:length - 1] = self.tokens[at:at + length - 1 - start]
            row[r, length - 1] = EOS if self._ends[i] else BOS
            scored[r, start:length] = True
        return row[:, :-1], np.where(scored, row, IGNORE)[:, 1:]

    def batch(self, indices, seed):
        """What rows gives for training, but each index beyond the windows stands for one without an address: text from
        the start of a line drawn by the seed, scored after that line."""
        inputs, targets = self.rows([i if i < len(self) else 0 for i in indices])
        line_starts = self._line_starts
        random = np.random.default_rng(seed)
        for r in np.flatnonzero(np.asarray(indices) >= len(self)):
            k = random.integers(len(line_starts))
            at, stop = line_starts[k]
            row = np.concatenate(([BOS], self.tokens[at:min(at + self.context, stop)])).astype(np.int64)
            first = (line_starts[k + 1][0] if k + 1 < len(line_starts) else stop) - at
            inputs[r, :], targets[r, :] = 0, IGNORE
            inputs[r, :len(row) - 1] = row[:-1]
            targets[r, first:len(row) - 1] = row[first + 1:]
        return inputs, targets
