"""Bytes to token ids and back, exactly: SentencePiece BPE that takes any bytes at all.

The vocabulary is learned from the tree itself. Pieces may cross spaces and line ends (`;\\n\\t\\treturn`), because a
token less is a token less to learn by heart: Linux 1.0 takes 1.10 M tokens so, against 1.45 M with pieces kept within
words and 1.30 M with pieces kept within lines (8192 pieces each). What UTF-8 cannot hold, and what SentencePiece
keeps for itself, goes through its 256 byte pieces.
"""
import collections
import io
import itertools
import json
import lzma
import re
import struct
from pathlib import Path

import numpy as np
import sentencepiece

from memory.output import UserError

UNK, BOS, EOS = 0, 1, 2
LARGE = 2**24  # bytes of text: of a larger one the pieces are learned from so much, and its size is taken by `xz -2`
SPACE = "\u2581"  # SentencePiece's mark for a space
# SentencePiece spells a character that it has no piece for in the bytes of its UTF-8. A byte that it cannot be given
# goes through it as one of 256 private characters, from STAND_IN on, each of which is four such bytes.
STAND_IN = 0x100000
# What must be spelled in bytes: bytes that are not UTF-8 (as lone surrogates), NUL, the two characters that
# SentencePiece reserves, for a space and for an unknown, and the stand-ins themselves.
SPELLED = re.compile("[\udc80-\udcff\0\u2581\u2585\U00100000-\U001000ff]+")
SPELLING = {ord(c): "".join(chr(STAND_IN + byte) for byte in c.encode("utf-8", "surrogateescape"))
            for c in map(chr, [*range(0xDC80, 0xDD00), 0, 0x2581, 0x2585, *range(STAND_IN, STAND_IN + 256)])}
CHUNK, LONGEST = 2**10, 2**14  # bytes: a text is cut for encoding at the first place after CHUNK, LONGEST at the latest
BATCH = 2**10  # chunks that are encoded at once, on all cores


def unicode(data):
    """bytes -> str; what is not UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def choose_packer(size):
    """(name, preset) of the packer that measures a text of `size` bytes: of a large one, the best takes minutes."""
    return ("xz -9e", 9 | lzma.PRESET_EXTREME) if size <= LARGE else ("xz -2", 2)


def compressed_bits(texts, preset):
    """Size in bits of all the bytes in `texts` under xz: an upper bound on what there is to memorize."""
    packer = lzma.LZMACompressor(preset=preset)
    return 8 * (sum(len(packer.compress(text)) for text in texts) + len(packer.flush()))


def rarest(documents, room):
    """The characters that leave no more than `room` kinds in a list of bytes, the rarest first to go; those that are
    spelled in bytes anyway do not count."""
    kinds = [c for c in set().union(*(set(unicode(data)) for data in documents)) if not SPELLED.match(c)]
    if len(kinds) <= room:  # to count them takes much longer
        return []
    counts = collections.Counter()
    for data in documents:
        counts.update(unicode(data))
    return sorted(kinds, key=lambda c: (-counts[c], c))[room:]


def varint(number):
    """A whole number as protocol buffers write it: 7 bits a byte, the lowest first."""
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def piece_field(piece, score, kind):
    """One piece as tokenizer.model lists it; kind: 1 normal, 2 unknown, 3 control, 6 byte."""
    text = piece.encode()
    data = b"\x0a" + varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind]) * (kind != 1)
    return b"\x0a" + varint(len(data)) + data


class TooManyPieces(UserError):
    """A text supports no more pieces than `most`, which is None if not even that is known."""

    def __init__(self, message, most):
        super().__init__(message)
        self.most = most


class Tokenizer:
    """ids are ints in [0, vocab_size); decode(encode(data)) == data for all bytes."""

    def __init__(self, proto):
        """proto: the bytes of a tokenizer.model. Raises UserError if they are none."""
        self.proto = proto
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.LoadFromSerializedProto(proto)
            self.vocab_size = self.sp.vocab_size()
            self.byte_ids = [self.sp.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
            self.space = self.sp.piece_to_id(SPACE)
            spelled = {piece: bytes([byte]) for byte, piece in enumerate(self.byte_ids)}
            # the bytes that each id stands for; none for <unk>, <s> and </s>
            self.pieces = [spelled.get(i) or (b"" if i <= EOS else self.sp.id_to_piece(i).replace(SPACE, " ").encode())
                           for i in range(self.vocab_size)]
            # pairs of bytes that a text is not cut between: they stand inside a piece, or a character may
            self.joined = bytearray(byte >> 6 == 2 for byte in range(256)) * 256
            for piece in self.pieces:
                for pair in zip(piece, piece[1:]):
                    self.joined[pair[0] << 8 | pair[1]] = 1
            self.byte_of = np.full(self.vocab_size, -1)
            self.byte_of[self.byte_ids] = range(256)
        except (RuntimeError, ValueError):
            raise UserError("tokenizer.model is damaged; run prepare.py again, or copy the model again") from None

    @classmethod
    def load(cls, folder):
        """The tokenizer in `folder`, from tokenizer.json if transformers saved it there without tokenizer.model.
        Raises UserError if there is none."""
        folder = Path(folder)
        try:
            if not (folder / "tokenizer.model").exists() and (folder / "tokenizer.json").exists():
                return cls.from_json((folder / "tokenizer.json").read_bytes())
            return cls((folder / "tokenizer.model").read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {folder}/tokenizer.model: {error.strerror}") from None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{folder} has no tokenizer.model, and a tokenizer.json of another kind; copy "
                            f"tokenizer.model from the folder that train.py wrote") from None

    @classmethod
    def from_json(cls, document):
        """The tokenizer whose pieces are in `document`, the bytes of a tokenizer.json: its proto has the same bytes as
        the tokenizer.model that save wrote beside it. Raises ValueError, LookupError, TypeError or AttributeError if it
        holds something else."""
        vocab = json.loads(document)["model"]["vocab"]
        pieces = sorted(vocab, key=vocab.get)
        marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        if [vocab[piece] for piece in pieces] != list(range(len(pieces))) or pieces[:259] != marks:
            raise ValueError("these are not the pieces of a tokenizer.model")
        proto = b"".join(map(piece_field, marks, [0] * 259, [2, 3, 3] + [6] * 256))
        # What follows the pieces says how they were learned: the same for all, but for their number and so the length.
        least = cls.train([], 260).proto[len(proto + piece_field(SPACE, -0.0, 1)):]
        spec = least[2:2 + least[1]].replace(b"\x20" + varint(260), b"\x20" + varint(len(pieces)), 1)
        proto += b"".join(piece_field(piece, -float(rank), 1) for rank, piece in enumerate(pieces[259:]))
        return cls(proto + least[:1] + varint(len(spec)) + spec + least[2 + least[1]:])

    @classmethod
    def train(cls, documents, vocab_size):
        """Learns vocab_size pieces from an iterable of bytes. Raises TooManyPieces if it does not support them."""
        documents = list(documents)
        left = vocab_size - 260
        # Characters get half of the pieces, or 256, at most: one without a piece is spelled in bytes.
        rare = dict.fromkeys(map(ord, rarest(documents, min(left, max(256, left // 2)))), "\0")
        texts = (run for data in documents for run in SPELLED.split(unicode(data).translate(rare)) if run)
        texts = itertools.chain([next(texts, " ")], texts)  # none at all is an error to SentencePiece
        proto = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=texts, model_writer=proto, model_type="bpe", vocab_size=vocab_size,
                unk_id=UNK, bos_id=BOS, eos_id=EOS, byte_fallback=True, character_coverage=1.0,
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                split_by_whitespace=False, split_by_number=False, split_by_unicode_script=False,
                allow_whitespace_only_pieces=True, required_chars=SPACE, max_sentencepiece_length=64,
                max_sentence_length=2**30, minloglevel=3)  # longer "sentences" (files) are skipped silently
        except (RuntimeError, OSError) as error:
            limit = re.search(r"<= (\d+)\.", str(error))
            reason = f"; try --vocab_size {limit[1]}" if limit else f": {' '.join(str(error).split())}"
            raise TooManyPieces(f"this text does not support {vocab_size} pieces{reason}",
                                int(limit[1]) if limit else None) from None
        return cls(proto.getvalue())

    def encode(self, data):
        """bytes -> list of ids, without <s> and </s>."""
        text = unicode(data)
        if len(data) <= CHUNK and not SPELLED.search(text):  # a path, say: the same without the detour
            return self.sp.encode(text)
        return next(self.encode_all([data])).tolist()

    def encode_all(self, documents, done=lambda size: None):
        """Yields the ids of each document, as a uint16 array; documents: iterable of bytes. All cores share the work, a
        batch at a time, and done(number of bytes) is called after each."""
        chunks = itertools.chain.from_iterable(itertools.chain(self._cut(data), [b""]) for data in documents)
        parts = []
        while batch := list(itertools.islice(chunks, BATCH)):
            found = self._encode_chunks(batch)
            done(sum(map(len, batch)))
            for chunk, ids in zip(batch, found):
                parts.append(ids)
                if not chunk:  # the end of a document
                    yield np.concatenate(parts)
                    parts = []

    def _cut(self, data):
        """Yields the bytes `data` in chunks that have the same ids as the whole: no piece, so no merge, crosses a cut.
        Only a text without a place for one is cut all the same after LONGEST bytes, because time and memory grow faster
        than a chunk."""
        at, size, joined = 0, len(data), self.joined
        while at < size:
            end, last = min(at + CHUNK, size), min(at + LONGEST, size)
            while end < last and joined[data[end - 1] << 8 | data[end]]:
                end += 1
            yield data[at:end]
            at = end

    def _encode_chunks(self, chunks):
        """List of bytes -> list of uint16 arrays of ids."""
        texts = [unicode(chunk) for chunk in chunks]
        spelled = [bool(SPELLED.search(text)) for text in texts]
        texts = [text.translate(SPELLING) if special else text for text, special in zip(texts, spelled)]
        found = self.sp.encode(texts, return_type="numpy", num_threads=-1 if len(texts) > 32 else 1)  # -1: all cores
        if not any(spelled):
            return [ids.astype(np.uint16) for ids in found]
        ids = np.concatenate(found)
        # each stand-in, as the bytes F4 80 10bbbbbb 10bbbbbb, becomes the byte bb bbbbbb that it stands for
        byte = np.append(self.byte_of[ids], [0, 0, 0])
        at = np.flatnonzero((byte[:-3] == 0xF4) & (byte[1:-2] == 0x80) & (byte[2:-1] < 0x84))
        ids[at] = np.array(self.byte_ids)[(byte[at + 2] & 3) << 6 | byte[at + 3] & 63]
        keep = np.ones(len(ids), dtype=bool)
        keep[at[:, None] + [1, 2, 3]] = False
        ends = np.append(0, np.cumsum(keep))[np.cumsum([len(part) for part in found])]
        return np.split(ids[keep].astype(np.uint16), ends[:-1])

    def decode(self, ids):
        """iterable of ids -> bytes; <unk>, <s> and </s> give nothing."""
        return b"".join([self.pieces[i] for i in ids])

    def saved(self, context):
        """{name: bytes} of tokenizer.model and of what transformers reads: tokenizer.json, tokenizer_config.json.

        tokenizer.json is made here rather than converted by transformers, whose versions differ on a bare
        tokenizer.model. context: the model's window in tokens.
        """
        sp, specials = self.sp, ["<unk>", "<s>", "</s>"]
        normal = {sp.id_to_piece(i) for i in range(self.vocab_size)
                  if not (sp.is_unknown(i) or sp.is_control(i) or sp.is_byte(i))}
        by_rank = sorted(normal, key=sp.piece_to_id)  # id order is merge order
        merges = [[piece[:k], piece[k:]] for piece in by_rank for k in range(1, len(piece))
                  if piece[:k] in normal and piece[k:] in normal]
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        document = {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": piece, "special": True, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False} for i, piece in enumerate(specials)],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            "pre_tokenizer": None,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                      "vocab": {sp.id_to_piece(i): i for i in range(self.vocab_size)}, "merges": merges}}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "pad_token": "<unk>", "add_prefix_space": False,
            "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "left", "model_max_length": context}
        return {"tokenizer.model": self.proto,
                "tokenizer.json": json.dumps(document, ensure_ascii=False).encode(),
                "tokenizer_config.json": json.dumps(config, indent=2).encode()}
