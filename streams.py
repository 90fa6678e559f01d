"""The model as it writes: a token a step, for one text or for many side by side.

model.py says what the network computes. Here is the same for one new token of each text. With few texts and a small
model, the number of operations takes the time: so Q, K and V are one product, gate and up are one, RoPE turns all heads
at once, and the weight of a norm is folded into the matrix behind it.
"""
import math

import torch
from torch.nn import functional as F


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
        follows them. T is 1, or any number where no text holds anything yet; no text may outgrow the context."""
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
