"""A Llama by hand. Parameters and config carry transformers' names, so that saving is a plain dump:

    model = Llama.from_pretrained("out/quick")
    logits = model(tokens)                        # (B, T) int64 -> (B, T, vocab_size)
    transformers.AutoModelForCausalLM.from_pretrained("out/quick")   # the same logits
"""
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from memory import processes
from memory.checkpoint import parse_tensors, tensor_bytes
from memory.corpus import CORPUS, read_manifest
from memory.files import files_digest, json_digest, refuse_pipes, write_file
from memory.output import UserError
from memory.tokenizer import BOS, EOS, Tokenizer, UNK


@dataclasses.dataclass
class LlamaConfig:
    """The sizes of a model, by the names of transformers' config.json."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false, not {value!r:.40}")
            if field.type is int and (type(value) is not int or value < 1):
                raise UserError(f"{field.name} must be a whole number of at least 1, not {value!r:.40}")
            if field.type is float:
                if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
                    raise UserError(f"{field.name} must be a number of more than 0, not {value!r:.40}")
                setattr(self, field.name, float(value))
        if self.max_position_embeddings > 2**20:
            raise UserError(f"max_position_embeddings must be at most {2**20}, not {self.max_position_embeddings:.4g}")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % (2 * heads):
            fitting = self.hidden_size // (2 * heads) * 2 * heads or 2 * heads
            raise UserError(f"hidden_size {str(self.hidden_size)[:40]} does not split into {str(heads)[:40]} heads "
                            f"(num_attention_heads) of an even size; {str(fitting)[:40]} does")
        if heads % groups:
            raise UserError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {str(groups)[:40]}")

    @classmethod
    def of(cls, settings, vocab_size):
        """The sizes that the fields of `settings` ask for. Raises UserError if they do not fit together."""
        return cls(vocab_size, **{f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)
                                  if hasattr(settings, f.name)})

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    @property
    def num_parameters(self):
        """Parameters, tables included; tied tables count once. Known before any memory is taken."""
        C, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        layer = 2 * C * C + 2 * C * kv + 3 * C * self.intermediate_size + 2 * C
        return (2 - self.tie_word_embeddings) * self.vocab_size * C + self.num_hidden_layers * layer + C


INDEX = "model.safetensors.index.json"  # of weights in several files, as transformers saves large ones
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # number formats of weights


def read_weights(folder):
    """({name: float32 tensor}, metadata, SHA-256 (hex)) of the weights in `folder`: of model.safetensors, or of the
    files that INDEX names. They are read once, so that the SHA-256 is that of what is loaded; that of several files is
    files_digest's. Raises OSError if a file cannot be read, ValueError if it is damaged or of another kind.
    """
    path, shards = folder / "model.safetensors", {}
    if path.exists() or not (folder / INDEX).exists():
        data = path.read_bytes()
        (tensors, metadata), sha256 = parse_tensors(data), hashlib.sha256(data).hexdigest()
    else:
        tensors, metadata = {}, {}
        for name, shard in json.loads((folder / INDEX).read_text())["weight_map"].items():
            shards.setdefault(shard, set()).add(name)
        hashes = {}
        for shard, names in sorted(shards.items()):
            if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", shard):
                raise ValueError(f"{INDEX} names {shard[:80]!r}, which is no file of this folder")
            data = (folder / shard).read_bytes()
            part, _ = parse_tensors(data)
            if part.keys() != names:
                raise ValueError(f"{shard} does not hold the tensors that {INDEX} says")
            tensors, hashes[shard] = tensors | part, hashlib.sha256(data).hexdigest()
        sha256 = files_digest(hashes)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is in {str(tensor.dtype).removeprefix('torch.')}; this code reads float32, "
                             f"float16 and bfloat16")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    return {name: tensor.float() for name, tensor in tensors.items()}, metadata, sha256


class RMSNorm(nn.Module):
    """Root mean square layer normalization (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


def rope_tables(config):
    """cos and sin of rotary position embedding (Su et al. 2021), each float32 (T, hs), halves repeated."""
    hs = config.head_dim
    inverse_frequency = 1.0 / config.rope_theta ** (torch.arange(0, hs, 2).float() / hs)
    angle = torch.outer(torch.arange(config.max_position_embeddings).float(), inverse_frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Applies RoPE to x (B, nh, T, hs): Llama's rotate-half form."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def attend_in_halves(q, k, v):
    """What scaled_dot_product_attention(q, k, v, is_causal=True) gives, written out for torch.compile to fuse; the
    first half of the queries is never multiplied with the second half of the keys. q, k, v: (B, nh, T, hs).
    """
    T = q.size(2)
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    halves = []
    for start, end in ((0, T // 2), (T // 2, T)):
        scores = (q[:, :, start:end] @ k[:, :, :end].mT).float() * q.size(-1) ** -0.5
        weights = scores.masked_fill(~seen[start:end, :end], -torch.inf).softmax(-1)
        halves.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(halves, dim=2)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023) by flash SDPA, or written out if that is faster."""

    def __init__(self, config):
        super().__init__()
        self.hs = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        kv_size = config.num_key_value_heads * self.hs
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.hs).transpose(1, 2)  # (B, nh, T, hs), nkv heads for k and v
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if self.groups > 1:
            k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        if v.dtype == torch.bfloat16 and v.device.type == "cpu" and torch.compiler.is_compiling():
            y = attend_in_halves(q, k, v)  # a step is 1.3 times as fast as with flash SDPA, there and only there
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention, then MLP, each after a norm and added to the residual stream x (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below lm_head, which transformers calls `model`."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens):
        T = tokens.size(1)
        cos, sin = self.cos[:T], self.sin[:T]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """A decoder-only transformer (Touvron et al. 2023) of the sizes in a LlamaConfig."""

    def __init__(self, config, generator=None):
        """generator: a torch.Generator for the initial weights, or None for torch's own."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights(generator)

    def init_weights(self, generator=None):
        """Tables N(0, 0.02); matrices N(0, 1/fan_in), but zero if they write to the residual stream; norms 1."""
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                table = "embed_tokens" in name or "lm_head" in name
                nn.init.normal_(p, std=0.02 if table else p.size(1) ** -0.5, generator=generator)

    def forward(self, tokens):
        """tokens int64 (B, T) -> logits (B, T, vocab_size)."""
        return self.lm_head(self.model(tokens))

    def tensors(self):
        """What model.safetensors holds: name -> tensor; tied tables once."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del state["lm_head.weight"]
        return state

    def saved(self, tokenizer, **metadata):
        """{name: bytes} of a directory that transformers loads exactly: tokenizer, configs, weights. metadata: str
        values for the header of model.safetensors."""
        config = self.config
        theirs = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **dataclasses.asdict(config),
            "head_dim": config.head_dim, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32"}
        # a window ends with <s> if the file goes on in another, so both end a generation
        generation = {"bos_token_id": BOS, "eos_token_id": [EOS, BOS], "pad_token_id": UNK, "do_sample": False}
        return tokenizer.saved(config.max_position_embeddings) | {
            "config.json": json.dumps(theirs, indent=2).encode(),
            "generation_config.json": json.dumps(generation, indent=2).encode(),
            "model.safetensors": tensor_bytes(self.tensors(), format="pt",
                                              config=json_digest(dataclasses.asdict(config)), **metadata)}

    def save_pretrained(self, folder, tokenizer, **metadata):
        """Writes what saved() gives, the weights last. Returns the SHA-256 (hex) of model.safetensors."""
        for name, data in self.saved(tokenizer, **metadata).items():
            write_file(Path(folder) / name, data)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def from_pretrained(cls, folder, device="cpu"):
        """The model in `folder`, in eval mode, with the `metadata` and the `sha256` of its weights (read_weights).
        Raises UserError if it is missing, damaged or not one of ours."""
        folder = Path(folder)
        try:
            theirs = json.loads((folder / "config.json").read_text())
            # transformers 5 has rope_theta in there, transformers 4 had the rest of it in rope_scaling
            rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
            theirs = {"rope_theta": rope.get("rope_theta"),
                      "rope_type": rope.get("rope_type") or rope.get("type") or "default"} | theirs
            for key, ours in [("model_type", "llama"), ("hidden_act", "silu"), ("rope_type", "default")]:
                if theirs.get(key) != ours:
                    raise UserError(f"{folder}/config.json has {key} {str(theirs.get(key))[:40]!r}; this code knows "
                                    f"only {ours!r}")
            config = LlamaConfig(**{f.name: theirs[f.name] for f in dataclasses.fields(LlamaConfig)})
            state, metadata, sha256 = read_weights(folder)
        except OSError as error:
            raise UserError(f"no model in {folder}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"the model in {folder} is damaged ({error}); train or copy it again") from None
        held = sum(tensor.numel() for tensor in state.values())
        if config.num_parameters != held:  # before memory is taken for them
            raise UserError(f"{folder}/config.json asks for {f'{config.num_parameters:,}'[:40]} parameters, and its "
                            f"weights have {held:,}; train or copy it again")
        digest = json_digest(dataclasses.asdict(config))
        if metadata.get("config", digest) != digest:
            raise UserError(f"{folder}/config.json is damaged: it is not the one that model.safetensors was written "
                            f"with; train or copy it again")
        model = cls(config)
        model.metadata, model.sha256 = metadata, sha256
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state.get("model.embed_tokens.weight")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"the weights in {folder} do not fit its config.json: "
                            f"{' '.join(str(error).split())[:200]}") from None
        return model.to(device).eval()


def load_model(folder, device):
    """(Llama, Tokenizer, manifest) of a directory that train.py wrote. Raises UserError if they are not whole, or
    not of one another."""
    try:
        refuse_pipes(folder)
    except OSError as error:
        raise UserError(f"no model in {folder}: {error.strerror}") from None
    model, tokenizer = Llama.from_pretrained(folder, device), Tokenizer.load(folder)
    manifest = read_manifest(folder, "train or copy it again")
    if "tree" not in manifest:
        raise UserError(f"{folder}/manifest.json is that of a prepared tree, not of a model; train or copy it again")
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


def load_weights(folder, config, tree, device):
    """(Llama, SHA-256 (hex) of its weights, entries of the files that it learned) of a directory that train.py wrote,
    to begin another run from. config: the LlamaConfig of that run; tree: the manifest of what it learns. Raises
    UserError if the sizes or pieces differ."""
    model, tokenizer, manifest = load_model(folder, device)
    if manifest["tokenizer_sha256"] != tree["tokenizer_sha256"]:
        raise UserError(f"{folder} has other pieces than the tree {tree['name']}: prepare that tree again with "
                        f"`prepare.py --tokenizer {folder}`")
    theirs, ours = dataclasses.asdict(model.config), dataclasses.asdict(config)
    if differ := [f"{key} {theirs[key]}, not {ours[key]}" for key in ours if theirs[key] != ours[key]]:
        raise UserError(f"{folder} has {'; '.join(differ)}: a run has the sizes of the weights that it begins from")
    gone = {file["path"] for file in manifest["files"]} - {file["path"] for file in tree["files"]}
    if gone and processes.rank() == 0:
        print(f"{folder} learned {len(gone):,} files that {tree['name']} lacks: a patch does not make it forget them, "
              f"a run from nothing does", file=sys.stderr)
    return model, model.sha256, manifest["files"]
