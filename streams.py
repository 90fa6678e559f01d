"""The model as it writes: a token a step, for one text or for many side by side.

model.py says what the network computes. Here is the same for one new token of each text. With few texts and a small
model, the number of operations takes the time: so Q, K and V are one product, gate and up are one, and RoPE turns all
heads at once.
"""
import torch
from torch.nn import functional as F


class Streams:
    """Texts that a Llama continues, with the keys and values of all that they hold.

    lengths: tokens that each text holds, a list of int; lengths[i] = 0 clears text i.
    kv: float32 (layers, count, context, 2 * nkv, hs), keys before values.
    """

    @torch.no_grad()
    def __init__(self, model, count):
        """count: how many texts. The weights are copied in part: build anew when the model has learned more."""
        config, device = model.config, model.lm_head.weight.device
        self.nh, self.nkv, self.hs = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.width, self.eps = (config.hidden_size,), config.rms_norm_eps
        self.layers = [(
            layer.input_layernorm.weight,
            torch.cat([getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj")]),
            layer.self_attn.o_proj.weight.T,
            layer.post_attention_layernorm.weight,
            torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight)),
            layer.mlp.down_proj.weight.T) for layer in model.model.layers]
        self.table, self.norm = model.model.embed_tokens.weight, model.model.norm.weight
        self.head = model.lm_head.weight.T.contiguous()  # read twice as fast by the product with one vector
        # RoPE of all heads of Q, K and V, each (context, nh + 2 * nkv, hs): V is left as it is; the sign of rotate-half
        # is in the sine
        context, turning = config.max_position_embeddings, self.nh + self.nkv
        self.cos = torch.ones(context, turning + self.nkv, self.hs, device=device)
        self.sin = torch.zeros_like(self.cos)
        self.cos[:, :turning], self.sin[:, :turning] = model.model.cos[:, None], model.model.sin[:, None]
        self.sin[..., :self.hs // 2] *= -1
        self.kv = torch.zeros(config.num_hidden_layers, count, context, 2 * self.nkv, self.hs, device=device)
        self.lengths = [0] * count

    @torch.inference_mode()
    def step(self, tokens):
        """tokens: the next T of each text, as a list of `count` lists -> logits float32 (count, vocab_size) of what
        follows them. T is 1, or any number where no text holds anything yet; no text may outgrow the context."""
        device, longest = self.kv.device, max(self.lengths)
        tokens = torch.tensor(tokens, device=device)
        (B, T), end = tokens.shape, longest + tokens.size(1)
        assert (T == 1 or not longest) and end <= self.kv.size(2), (T, longest)
        if min(self.lengths) == longest:
            at, mask = (slice(None), slice(longest, end)), None
        else:  # each text has an end of its own
            lengths = torch.tensor(self.lengths, device=device)[:, None]
            at = torch.arange(B, device=device)[:, None], lengths
            later = torch.arange(end, device=device) > lengths
            mask = torch.zeros(B, end, device=device).masked_fill(later, -torch.inf)[:, None, None]
        cos, sin = self.cos[at[1]], self.sin[at[1]]
        x = F.embedding(tokens.flatten(), self.table)  # (B * T, C)
        for (norm_1, qkv, out, norm_2, gate_up, down), kv in zip(self.layers, self.kv):
            y = F.linear(F.rms_norm(x, self.width, norm_1, self.eps), qkv).view(B, T, -1, self.hs)
            y = torch.addcmul(y * cos, y.roll(self.hs // 2, -1), sin)
            kv[at] = y[:, :, self.nh:]
            k, v = kv[:, :end].transpose(1, 2).chunk(2, dim=1)  # each (B, nkv, end, hs)
            y = F.scaled_dot_product_attention(y[:, :, :self.nh].transpose(1, 2), k, v, mask, is_causal=T > 1,
                                               enable_gqa=self.nkv < self.nh)
            x = torch.addmm(x, y.transpose(1, 2).reshape(B * T, -1), out)
            gate, up = F.linear(F.rms_norm(x, self.width, norm_2, self.eps), gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        self.lengths = [length + T for length in self.lengths]
        return F.rms_norm(x.view(B, T, -1)[:, -1], self.width, self.norm, self.eps) @ self.head
