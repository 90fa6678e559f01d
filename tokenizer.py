"""Bytes to token ids and back, exactly: SentencePiece BPE that takes any bytes at all.

The vocabulary is learned from the tree itself. Pieces may cross spaces and line ends (`;\\n\\t\\treturn`), because a
token less is a token less to learn by heart: Linux 1.0 takes 1.10 M tokens so, against 1.45 M with pieces kept within
words and 1.30 M with pieces kept within lines (8192 pieces each). What UTF-8 cannot hold, and what SentencePiece
keeps for itself, goes through its 256 byte pieces.
"""
import io
import json
import lzma
import re
from pathlib import Path

import sentencepiece

from common import UserError, write_file

UNK, BOS, EOS = 0, 1, 2
SPACE = "\u2581"  # SentencePiece's mark for a space
# A run of what must be spelled in bytes: bytes that are not UTF-8 (as lone surrogates), NUL, and the two characters
# that SentencePiece reserves, for a space and for an unknown.
SPELLED = re.compile("([\udc80-\udcff\0\u2581\u2585]+)")


def compressed_bits(texts):
    """Size in bits of all the bytes in `texts` under `xz -9e`: an upper bound on what there is to memorize."""
    packer = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    return 8 * (sum(len(packer.compress(text)) for text in texts) + len(packer.flush()))


class Tokenizer:
    """ids are ints in [0, vocab_size); decode(encode(data)) == data for all bytes."""

    def __init__(self, proto):
        """proto: the bytes of a tokenizer.model. Raises UserError where they are none."""
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
        except (RuntimeError, ValueError):
            raise UserError("tokenizer.model is damaged; run prepare.py again, or copy the model again") from None

    @classmethod
    def load(cls, folder):
        """The tokenizer in `folder`. Raises UserError where there is none."""
        try:
            return cls((Path(folder) / "tokenizer.model").read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {folder}/tokenizer.model: {error.strerror}") from None

    @classmethod
    def train(cls, documents, vocab_size):
        """Learns vocab_size pieces from an iterable of bytes. Raises UserError where the text cannot support them."""
        texts = (run for data in documents
                 for run in SPELLED.split(data.decode("utf-8", "surrogateescape"))[::2] if run)
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
            limit = re.search(r"<= (\d+)\.|\d+ vs (\d+)", str(error))  # at most; or at least
            reason = f"; try --vocab_size {limit[1] or limit[2]}" if limit else f": {' '.join(str(error).split())}"
            raise UserError(f"this text does not support {vocab_size} pieces{reason}") from None
        return cls(proto.getvalue())

    def encode(self, data):
        """bytes -> list of ids, without <s> and </s>."""
        ids = []
        for i, run in enumerate(SPELLED.split(data.decode("utf-8", "surrogateescape"))):
            if i % 2:
                ids += [self.byte_ids[byte] for byte in run.encode("utf-8", "surrogateescape")]
            elif run:
                ids += self.sp.encode(run)
        return ids

    def decode(self, ids):
        """iterable of ids -> bytes; <unk>, <s> and </s> give nothing."""
        return b"".join([self.pieces[i] for i in ids])

    def save(self, folder, context):
        """Writes tokenizer.model and what transformers reads: tokenizer.json, tokenizer_config.json.

        tokenizer.json is written here rather than converted by transformers, whose versions differ on a bare
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
        write_file(Path(folder) / "tokenizer.model", self.proto)
        write_file(Path(folder) / "tokenizer.json", json.dumps(document, ensure_ascii=False).encode())
        write_file(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=2).encode())
