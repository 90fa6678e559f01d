"""The model as it writes: a token a step, for one text (generate) or for many side by side (recite).

model.py says what the network computes. Here is the same for one new token of each text. With few texts and a small
model, the number of operations takes the time: so Q, K and V are one product, gate and up are one, RoPE turns all heads
at once, and the weight of a norm is folded into the matrix after it.
"""
import collections
import math

import torch
from torch.nn import functional as F

from memory.evaluate import first_choice
from memory.tokenizer import BOS, UNK
from memory.windows import advance, cut, opening, parse_address, slide

SHOWN = 400  # bytes after its first wrong byte that a recital which is compared goes on for


class Streams:
    """Texts that a Llama continues, with the keys and values of all that they hold.

    lengths: tokens that each text holds, a list of int; lengths[i] = 0 clears text i.
    kv: float32 (layers, count, 2 * nkv, context, hs), keys before values.
    """

    @torch.no_grad()
    def __init__(self, model, count):
        """count: how many texts. The weights are copied: build anew when the model has learned more."""
        config, device = model.config, model.lm_head.weight.device
        self.nh, self.nkv, self.hs = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        turning, half = self.nh + self.nkv, self.hs // 2
        self.least = torch.tensor(math.sqrt(config.hidden_size * config.rms_norm_eps), device=device)

        def behind(norm, *linears):  # (C, all their outputs), for a row of `unit`
            weight = torch.cat([linear.weight for linear in linears])
            return (weight * (math.sqrt(config.hidden_size) * norm.weight)).T.contiguous()

        def paired(weight):  # the two dimensions that RoPE turns into each other side by side, in Q and K alike
            heads = weight.view(config.hidden_size, -1, self.hs)
            heads[:, :turning] = heads[:, :turning].unflatten(2, (2, half)).mT.flatten(2)
            return weight

        self.layers = [(
            paired(behind(layer.input_layernorm, *(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"))),
            layer.self_attn.o_proj.weight.T.contiguous(),
            behind(layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj),
            layer.mlp.down_proj.weight.T.contiguous()) for layer in model.model.layers]
        self.table = model.model.embed_tokens.weight
        # in parts, so that all cores share the product even for one row: (parts, C, vocab_size / parts)
        self.head = behind(model.model.norm, model.lm_head).unflatten(1, (math.gcd(16, config.vocab_size), -1))
        self.head = self.head.transpose(0, 1).contiguous()
        # RoPE of all heads of Q, K and V, as complex numbers (context, nh + 2 * nkv, hs / 2): 1 leaves V as it is
        context = config.max_position_embeddings
        self.turn = torch.ones(context, turning + self.nkv, half, dtype=torch.complex64, device=device)
        self.turn[:, :turning] = torch.complex(model.model.cos, model.model.sin)[:, None, :half]
        self.kv = torch.zeros(config.num_hidden_layers, count, 2 * self.nkv, context, self.hs, device=device)
        self.lengths = [0] * count

    def unit(self, x):
        """Rows (n, C) that RMSNorm would give, but for its weight and a factor of sqrt(C)."""
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least)

    @torch.inference_mode()
    def step(self, tokens):
        """tokens: the next T of each text, as a list of `count` lists -> logits float32 (count, vocab_size) of what
        follows them. T is 1, or any number if no text holds anything yet; no text may outgrow the context."""
        device, longest = self.kv.device, max(self.lengths)
        tokens = torch.tensor(tokens, device=device)
        (B, T), end = tokens.shape, longest + tokens.size(1)
        assert (T == 1 or not longest) and end <= self.kv.size(3), (T, longest)
        if min(self.lengths) == longest:
            at, turn, mask = (slice(None), slice(None), slice(longest, end)), self.turn[longest:end], None
        else:  # each text has an end of its own
            lengths = torch.tensor(self.lengths, device=device)[:, None]
            later = torch.arange(end, device=device) > lengths
            at = (torch.arange(B, device=device)[:, None, None], torch.arange(2 * self.nkv, device=device)[:, None],
                  lengths[:, None])
            turn = self.turn[lengths]
            mask = torch.zeros(B, end, device=device).masked_fill(later, -torch.inf)[:, None, None]
        x = F.embedding(tokens.flatten(), self.table)  # (B * T, C)
        for (qkv, out, gate_up, down), kv in zip(self.layers, self.kv):
            y = torch.view_as_complex((self.unit(x) @ qkv).view(B, T, -1, self.hs // 2, 2)) * turn
            y = torch.view_as_real(y).view(B, T, -1, self.hs).transpose(1, 2)
            kv[at] = y[:, self.nh:]
            k, v = kv[:, :, :end].chunk(2, dim=1)  # each (B, nkv, end, hs)
            y = F.scaled_dot_product_attention(y[:, :self.nh], k, v, mask, is_causal=T > 1,
                                               enable_gqa=self.nkv < self.nh)
            x = torch.addmm(x, y.transpose(1, 2).reshape(B * T, -1), out)
            gate, up = (self.unit(x) @ gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        self.lengths = [length + T for length in self.lengths]
        return (self.unit(x.view(B, T, -1)[:, -1]) @ self.head).transpose(0, 1).reshape(B, -1)


def draw(logits, temperature, top_k, generator):
    """Index of one of logits (N,), float32: the first choice at temperature 0, else drawn. Raises UserError if they are
    not finite."""
    best = first_choice(logits)
    if temperature == 0:
        return int(best)
    if 0 < top_k < len(logits):  # of equal ones, the lowest too
        logits = logits.index_fill(0, logits.sort(descending=True, stable=True).indices[top_k:], -torch.inf)
    logits = logits.cpu().double()  # there is no float64 on every device
    weights = torch.softmax((logits - logits.max()) / temperature, -1)
    return int(torch.multinomial(weights, 1, generator=generator))


@torch.inference_mode()
def heal(model, tokenizer, prompt, temperature, top_k, generator):
    """Token healing: where and how the bytes `prompt` go on, as (ids of the window, next token, how many of that
    token's bytes the prompt holds already).

    A prompt may end inside a token of the text as it was trained on. One token of that text covers the prompt's end:
    it begins there, or it began some bytes before and goes on after it. Each such (prefix, token) is a candidate; their
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


@torch.inference_mode()
def recite(model, tokenizer, starts, limits, batch_size, originals=None, bar=None):
    """Greedy recital of many documents, one stream each, a stream taking the next document when its own ends.

    starts: ids of the window that each is in, opening included. limits: most tokens to write for each. originals: bytes
    that should follow each start; if given, a document is left soon after its first wrong byte. Returns the bytes
    written after each start. The same window rule as sample.py's, token by token: `windows.advance`.
    """
    context, written = model.config.max_position_embeddings, [bytearray() for _ in starts]
    waiting = collections.deque(range(len(starts)))
    rows = [None] * min(batch_size, len(starts))  # [document, ids of its window, tokens written]
    streams = Streams(model, len(rows))
    while True:
        for r, row in enumerate(rows):
            if row is None:
                streams.lengths[r] = 0
                if waiting:
                    document = waiting.popleft()
                    rows[r] = [document, list(starts[document]), 0]
        if not any(rows):
            return [bytes(text) for text in written]
        # at first what all can read of their beginnings, then a token at a time
        ahead = 1 if any(streams.lengths) else min(len(row[1]) if row else 1 for row in rows)
        tokens = [row[1][fed:fed + ahead] if row else [UNK] for row, fed in zip(rows, streams.lengths)]
        best = first_choice(streams.step(tokens)).tolist()
        for r, row in enumerate(rows):
            if row is None or streams.lengths[r] < len(row[1]):
                continue  # idle, or still reading its own beginning
            ids, piece = advance(tokenizer, row[1], best[r], context)
            text = written[row[0]]
            lost = originals and not originals[row[0]].startswith(bytes(text[:max(0, len(text) - SHOWN)]))
            if ids is None or row[2] >= limits[row[0]] or lost:
                rows[r] = None
                if bar:
                    bar.update()
            elif piece is None:
                row[1], streams.lengths[r] = ids, 0
            else:
                text += piece
                row[1], row[2] = ids, row[2] + 1
