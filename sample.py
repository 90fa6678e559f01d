"""Text from the model.

    python sample.py --prompt linux/                       # from the newest model under out/
    python sample.py --prompt "linux/kernel/sched.c"       # a file by its path, 500 tokens of it
    python sample.py --prompt "" --temperature 1           # any file
    python sample.py --prompt "static int " --num_samples 3
    python sample.py --file linux/kernel/sched.c | cmp - sched.c    # cmp's silence is the proof

A prompt may end anywhere, in the middle of a word too. Text goes on past the model's context by the window rule, with
--max_new_tokens 0 to the end of the file however long.
"""
# first, so that Ctrl-C during the imports below is one line
from common import UserError, emit, nearest, newest, parse, run

import dataclasses
import hashlib
import os
import sys
from pathlib import Path

import torch

from device import find_device
from model import Llama
from streams import Streams
from tokenizer import BOS, Tokenizer
from windows import CORPUS, address, advance, cut, opening, parse_address, quote, read_manifest, slide


@dataclasses.dataclass
class Settings:
    prompt: str = "linux/"  # text to continue; an empty one starts a new document
    file: str = ""  # write exactly this file's bytes, greedily, and check them against the manifest's SHA-256
    model: str = ""  # folder of the model; the newest under out/ where not given
    max_new_tokens: int = 500  # most tokens to add; 0: to the end of the document
    temperature: float = 0.2  # 0: always the likeliest token; 1: as likely as the model finds each
    top_k: int = 0  # choose among this many likeliest tokens; 0: among all
    num_samples: int = 1  # texts to write
    seed: int = 1337  # of the choices; each sample has its own
    device: str = "cpu"  # cuda, mps, cpu or auto; one token at a time, a small model is as quick on the CPU


def draw(logits, temperature, top_k, generator):
    """Index of one of logits (N,), float32: the largest at temperature 0, else drawn."""
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    logits = logits.cpu().double()  # there is no float64 on every device
    weights = torch.softmax((logits - logits.max()) / temperature, -1)
    return int(torch.multinomial(weights, 1, generator=generator))


@torch.inference_mode()
def heal(model, tokenizer, prompt, temperature, top_k, generator):
    """Token healing: where and how the bytes `prompt` go on, as (ids of the window, next token, how many of that
    token's bytes the prompt holds already).

    A prompt may end inside a token of the text as it was trained on. One token of that text covers the prompt's end:
    it begins there, or it began some bytes before and goes on behind. Each such (prefix, token) is a candidate; their
    probabilities add up to that of the prompt, and one is chosen by them. None is missed: before a true token boundary
    BPE gives the prefix alone the same tokens as the whole text.
    """
    context, longest = model.config.max_position_embeddings, max(map(len, tokenizer.pieces))
    device, found = model.lm_head.weight.device, parse_address(prompt)
    if found:
        path, first, length = found
        # the last window that surely opens where it would in the whole text: its end may be encoded otherwise there
        *_, offset = (at for _, at, _ in cut(tokenizer, path, tokenizer.encode(prompt[length:]), context, first)
                      if at == first or at <= first + len(prompt) - length - longest)
        text = prompt[length + offset - first:]
    else:
        ids = [BOS] + tokenizer.encode(prompt)
        text = tokenizer.decode(slide(tokenizer, ids, context) if len(ids) >= context else ids)

    candidates, scores = [], []  # (ids of the prefix's last window, of the tokens that may follow, how much they redo)
    for at in range(max(0, len(text) - longest), len(text) + 1):
        rest = text[at:]
        follow = [i for i, piece in enumerate(tokenizer.pieces)
                  if not rest or piece.startswith(rest) and len(piece) > len(rest)]
        if not follow:
            continue
        ids = tokenizer.encode(text[:at])
        spans = [([BOS], 0, ids[-(context - 1):])]
        if found:
            spans = list(cut(tokenizer, path, ids, context, offset))
            if rest and len(spans[-1][0]) + len(spans[-1][2]) == context:  # full: what follows opens the next window
                spans.append((opening(tokenizer, path, offset + at), offset + at, []))
        score = 0.0
        for k, (head, _, chunk) in enumerate(spans):
            ids = list(head) + list(chunk)
            logp = torch.log_softmax(model(torch.tensor([ids], device=device))[0].float(), -1)
            score += logp[range(len(head) - 1, len(ids) - 1), list(chunk)].sum()
            if k + 1 < len(spans):
                score += logp[-1, BOS]
        candidates.append((ids, follow, len(rest)))
        scores.append(score + logp[-1, follow])
    chosen = draw(torch.cat(scores), temperature, top_k, generator)
    for ids, follow, known in candidates:
        if chosen < len(follow):
            return ids, follow[chosen], known
        chosen -= len(follow)


@torch.inference_mode()
def generate(model, tokenizer, prompt, max_new_tokens=0, temperature=0.0, top_k=0, generator=None):
    """Yields, token by token, the bytes that follow the bytes `prompt`, to the end of the document or max_new_tokens.

    A window that is full or that the model ends with `<s>` is followed by the next, without a seam in the text.
    """
    context = model.config.max_position_embeddings
    ids, token, known = heal(model, tokenizer, prompt, temperature, top_k, generator)
    stream, written = Streams(model, 1), 0
    while not (max_new_tokens and written == max_new_tokens):
        ids, piece = advance(tokenizer, ids, token, context)
        if ids is None:
            return
        if piece is None:
            stream.lengths[0] = 0
        else:
            yield piece[known:]
            known, written = 0, written + 1
        token = draw(stream.step([ids[stream.lengths[0]:]])[0], temperature, top_k, generator)


def load_model(folder, device):
    """(Llama, Tokenizer, manifest) of a directory that train.py wrote. Raises UserError where they are not whole, or
    not of one another."""
    model, tokenizer = Llama.from_pretrained(folder, device), Tokenizer.load(folder)
    manifest = read_manifest(folder, "train or copy it again")
    for key in CORPUS:
        if model.metadata.get(key, manifest[key]) != manifest[key]:
            raise UserError(f"{folder}/model.safetensors was not trained on the tree of its manifest.json (another "
                            f"{key}); train or copy it again")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{folder} has a tokenizer of {tokenizer.vocab_size} pieces and a model of "
                        f"{model.config.vocab_size}; train or copy it again")
    if hashlib.sha256(tokenizer.proto).hexdigest() != manifest["tokenizer_sha256"]:
        raise UserError(f"{folder}/tokenizer.model is not what its manifest.json says; train or copy it again")
    if manifest["origin"] == "stand-in":
        print(f"{folder} learned {manifest['name']}, a STAND-IN for Linux 1.0", file=sys.stderr)
    return model, tokenizer, manifest


def prove(model, tokenizer, manifest, name):
    """Writes one file to standard output as the model recites it; 0 where it equals the original, else 1."""
    known = {file["path"]: file for file in manifest["files"]}
    path = name if name in known else quote(os.fsencode(name))
    if path not in known:
        raise UserError(f"this model did not learn {name}{nearest(name, known)}; it learned {len(known)} files")
    digest, size = hashlib.sha256(), 0
    longest = known[path]["tokens"] + model.config.max_position_embeddings  # a model that errs may never end
    for piece in generate(model, tokenizer, address(path), longest):
        emit(piece)
        digest.update(piece)
        size += len(piece)
    exact = digest.hexdigest() == known[path]["sha256"]
    print(f"{name}: {size:,} bytes, " + ("the original's SHA-256" if exact else
          f"not the original ({known[path]['bytes']:,} bytes)"), file=sys.stderr)
    return 0 if exact else 1


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    for name, least in [("max_new_tokens", 0), ("temperature", 0), ("top_k", 0), ("num_samples", 1), ("seed", 0)]:
        if getattr(settings, name) < least:
            raise UserError(f"{name} must be at least {least}, not {getattr(settings, name)}")
    if settings.seed + settings.num_samples > 2**63:
        raise UserError(f"seed must be less than 2**63, not {settings.seed}")
    folder = Path(settings.model or newest("model"))
    model, tokenizer, manifest = load_model(folder, find_device(settings.device))
    if settings.file:
        return prove(model, tokenizer, manifest, settings.file)
    prompt = os.fsencode(settings.prompt)
    for number in range(settings.num_samples):
        if settings.num_samples > 1:
            print(f"--- {number + 1} of {settings.num_samples}", file=sys.stderr)
        generator = torch.Generator().manual_seed(settings.seed + number)
        emit(prompt)
        for piece in generate(model, tokenizer, prompt, settings.max_new_tokens, settings.temperature,
                              settings.top_k, generator):
            emit(piece)
        emit(b"\n")
    return 0


if __name__ == "__main__":
    run(main)
