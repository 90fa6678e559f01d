// The worker in recite.html: from its weights to text. It says once more, and tests keep it equal to, what model.py,
// memory/tokenizer.py, memory/windows.py and memory/generate.py say. Bytes are strings here, a character for each.
"use strict";
const BOS = 1, EOS = 2, FIRST_BYTE = 3, FIRST_PIECE = 259;
const range = (n) => Array.from({ length: n }, (_, i) => i);
const toBytes = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
const toArray = (bytes) => Uint8Array.from(bytes, (c) => c.charCodeAt(0));

// SHA-256 (FIPS 180-4) of a Uint8Array, in hex. A page opened from a phone's mail has no crypto.subtle.
const PRIMES = range(312).filter((n) => n > 1 && range(n).every((d) => d < 2 || n % d));
const fraction = (x) => ((x % 1) * 2 ** 32) | 0;
const ROUNDS = Int32Array.from(PRIMES, (p) => fraction(Math.cbrt(p)));
function sha256(data) {
  const state = Int32Array.from(PRIMES.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const padded = new Uint8Array(((data.length + 72) >> 6) << 6), w = new Int32Array(64);
  padded.set(data);
  padded[data.length] = 128;
  const view = new DataView(padded.buffer), turn = (x, n) => (x >>> n) | (x << (32 - n));
  view.setBigUint64(padded.length - 8, BigInt(data.length) * 8n);
  for (let at = 0; at < padded.length; at += 64) {
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const x = w[i - 15], y = w[i - 2];
      const mix = (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) + (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10));
      w[i] = i < 16 ? view.getInt32(at + 4 * i) : w[i - 16] + w[i - 7] + mix;
      const s = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25), t = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
      const one = (h + s + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0, two = t + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => (state[i] += x));
  }
  return Array.from(state, (x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}

// A character of UTF-8, or else a byte.
const CHARACTER = new RegExp(
  "[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|" +
    "\xf0[\x90-\xbf][\x80-\xbf]{2}|\xf4[\x80-\x8f][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|[^]", "g");

class Tokenizer {
  constructor(texts) { // texts: the pieces that are neither marks nor single bytes
    const bytes = range(256).map((byte) => String.fromCharCode(byte));
    this.pieces = ["", "", "", ...bytes, ...texts.map(toBytes)];
    this.ids = new Map(this.pieces.map((piece, id) => [piece, id]).slice(FIRST_PIECE));
    this.space = this.ids.get(" ");
  }

  encode(bytes) { // byte pair encoding: joins the pair that is the lowest piece, the first of equals, to the end
    const parts = bytes.match(CHARACTER) ?? [];
    const joined = (i) => (i + 1 < parts.length && this.ids.get(parts[i] + parts[i + 1])) || Infinity;
    const ranks = parts.map((_, i) => joined(i));
    for (;;) {
      let at = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[at]) at = i;
      if (!(ranks[at] < Infinity)) return parts.flatMap((part) => this.ids.get(part) ?? this.spell(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
      ranks.splice(at, 2, joined(at));
      if (at) ranks[at - 1] = joined(at - 1);
    }
  }

  spell(bytes) {
    return Array.from(bytes, (c) => FIRST_BYTE + c.charCodeAt(0));
  }

  decode(ids) {
    return ids.map((id) => this.pieces[id]).join("");
  }
}

// The window rule
const ADDRESS = /^([!-*,-.0-~][!-*,-~]*\/[!-*,-~]+)(?:\+([1-9]\d{0,14}))? /;
const addressOf = (path, offset = 0) => (offset ? `${path}+${offset} ` : `${path} `);

function parseAddress(text) {
  const found = ADDRESS.exec(text);
  return found && { path: found[1], offset: Number(found[2] ?? 0), length: found[0].length };
}

function opening(tokenizer, path, offset = 0) {
  return [BOS, ...tokenizer.encode(addressOf(path, offset).slice(0, -1)), tokenizer.space];
}

function cut(tokenizer, path, ids, context, offset = 0) { // the windows {head, offset, chunk} of a text
  const windows = [];
  for (let at = 0; at < ids.length || !windows.length; ) {
    const head = opening(tokenizer, path, offset);
    if (head.length >= context) throw new RangeError(`This path leaves no room for text in ${context} tokens.`);
    const chunk = ids.slice(at, at + context - head.length);
    windows.push({ head, offset, chunk });
    at += chunk.length;
    offset += tokenizer.decode(chunk).length;
  }
  return windows;
}

function slide(tokenizer, ids, context) {
  const kept = ids.slice(-Math.floor(context / 2));
  const ends = kept.slice(0, -1).findIndex((id) => tokenizer.pieces[id].endsWith("\n"));
  return [BOS, ...kept.slice(ends + 1)];
}

function advance(tokenizer, ids, token, context) { // [ids, bytes written], [ids of the next window, null], [null, null]
  if (token !== BOS && token !== EOS && ids.length < context) return [[...ids, token], tokenizer.pieces[token]];
  if (token === EOS) return [null, null];
  const text = tokenizer.decode(ids), found = parseAddress(text);
  if (found && text.length > found.length)
    return [opening(tokenizer, found.path, found.offset + text.length - found.length), null];
  if (!found && ids.length === context) return [slide(tokenizer, ids, context), null];
  return [null, null];
}

// The network. A matrix is kept eight rows at a time, a column of them side by side: so a product reads it from end to
// end, and each number of the vector once for eight sums.
const LANES = 8;
const rounded = (rows) => Math.ceil(rows / LANES) * LANES;
const placeOf = (row, column, columns) => (row - (row % LANES)) * columns + column * LANES + (row % LANES);

function readTensors(bytes, list, format) { // list: [name, rows, columns], columns 0 for a vector -> {name: array}
  const tensors = {}, Kind = { int8: Int8Array, bfloat16: Uint16Array, float32: Float32Array }[format];
  let at = 0;
  const take = (Type, n) => new Type(bytes.buffer.slice(at, (at += n * Type.BYTES_PER_ELEMENT)));
  for (const [name, rows, columns] of list) {
    if (!columns) {
      tensors[name] = take(Float32Array, rows);
      continue;
    }
    const scales = format === "int8" ? take(Float32Array, rows) : new Float32Array(rows).fill(1);
    let values = take(Kind, rows * columns);
    if (format === "bfloat16") values = new Float32Array(Uint32Array.from(values, (x) => x << 16).buffer);
    const matrix = (tensors[name] = new Float32Array(rounded(rows) * columns));
    for (let r = 0; r < rows; r++)
      for (let c = 0; c < columns; c++) matrix[placeOf(r, c, columns)] = values[r * columns + c] * scales[r];
  }
  return tensors;
}

function multiply(matrix, x, y, rows, columns, width = columns) { // y = matrix x, of a matrix `width` columns wide
  for (let r = 0; r < rows; r += LANES) {
    let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (let n = 0, i = r * width; n < columns; n++, i += LANES) {
      const v = x[n];
      a += matrix[i] * v;
      b += matrix[i + 1] * v;
      c += matrix[i + 2] * v;
      d += matrix[i + 3] * v;
      e += matrix[i + 4] * v;
      f += matrix[i + 5] * v;
      g += matrix[i + 6] * v;
      h += matrix[i + 7] * v;
    }
    y[r] = a;
    y[r + 1] = b;
    y[r + 2] = c;
    y[r + 3] = d;
    y[r + 4] = e;
    y[r + 5] = f;
    y[r + 6] = g;
    y[r + 7] = h;
  }
}

class Llama {
  constructor(config, tensors) {
    Object.assign(this, { config, tensors, table: tensors["model.embed_tokens.weight"], held: [] });
    const { hidden_size: C, num_attention_heads: heads, num_key_value_heads: groups, vocab_size: V } = config;
    const context = config.max_position_embeddings, hs = C / heads, vector = (n) => new Float32Array(rounded(n));
    Object.assign(this, { C, heads, groups, hs, x: vector(C), h: vector(C + LANES), out: vector(C), q: vector(C) });
    Object.assign(this, { k: vector(groups * hs), v: vector(groups * hs), scores: vector(context) });
    Object.assign(this, { gate: vector(config.intermediate_size), up: vector(config.intermediate_size) });
    this.logits = new Float32Array(rounded(V)).subarray(0, V);
    this.padded = new Float32Array(this.logits.buffer);
    // of each layer and group: keys, a row for each position, and values, a column for each
    this.cache = range(config.num_hidden_layers).map(() => range(groups).map(() => (
      { keys: new Float32Array(rounded(context) * hs), values: new Float32Array(rounded(hs) * context) })));
    const frequencies = range(hs / 2).map((i) => Math.fround(1 / Math.fround(config.rope_theta ** ((2 * i) / hs))));
    this.angles = range(context).map((position) => frequencies.map((f) => Math.fround(position * f)));
  }

  norm(weight) { // RMSNorm of x, into h
    let sum = 0;
    for (let i = 0; i < this.C; i++) sum += this.x[i] * this.x[i];
    const scale = 1 / Math.sqrt(sum / this.C + this.config.rms_norm_eps);
    for (let i = 0; i < this.C; i++) this.h[i] = this.x[i] * scale * weight[i];
  }

  turn(vector, heads, position) { // RoPE
    for (let head = 0, half = this.hs / 2; head < heads; head++) {
      for (let i = 0; i < half; i++) {
        const at = head * this.hs + i, a = vector[at], b = vector[at + half];
        const cos = Math.cos(this.angles[position][i]), sin = Math.sin(this.angles[position][i]);
        vector[at] = a * cos - b * sin;
        vector[at + half] = b * cos + a * sin;
      }
    }
  }

  keep(cache, position) { // k and v
    for (let i = 0; i < this.groups * this.hs; i++) {
      const { keys, values } = cache[Math.floor(i / this.hs)], at = i % this.hs;
      keys[placeOf(position, at, this.hs)] = this.k[i];
      values[placeOf(at, position, this.config.max_position_embeddings)] = this.v[i];
    }
  }

  attend(cache, position) { // of q, over all positions up to this one, into h
    const { hs, scores } = this, seen = position + 1, root = Math.sqrt(hs), share = this.heads / this.groups;
    for (let head = 0; head < this.heads; head++) {
      const { keys, values } = cache[Math.floor(head / share)];
      multiply(keys, this.q.subarray(head * hs), scores, seen, hs);
      let most = -Infinity, sum = 0;
      for (let p = 0; p < seen; p++) most = Math.max(most, scores[p]);
      for (let p = 0; p < seen; p++) sum += scores[p] = Math.exp((scores[p] - most) / root);
      for (let p = 0; p < seen; p++) scores[p] /= sum;
      multiply(values, scores, this.h.subarray(head * hs), hs, seen, this.config.max_position_embeddings);
    }
  }

  add() {
    for (let i = 0; i < this.C; i++) this.x[i] += this.out[i];
  }

  read(token, position) { // one token, whose keys and values are kept
    const { C, x, h, q, k, v, out, gate, up, table, tensors } = this, inner = this.config.intermediate_size;
    for (let c = 0; c < C; c++) x[c] = table[placeOf(token, c, C)];
    this.cache.forEach((cache, n) => {
      const weight = (name) => tensors[`model.layers.${n}.${name}.weight`];
      this.norm(weight("input_layernorm"));
      multiply(weight("self_attn.q_proj"), h, q, C, C);
      multiply(weight("self_attn.k_proj"), h, k, this.groups * this.hs, C);
      multiply(weight("self_attn.v_proj"), h, v, this.groups * this.hs, C);
      this.turn(q, this.heads, position);
      this.turn(k, this.groups, position);
      this.keep(cache, position);
      this.attend(cache, position);
      multiply(weight("self_attn.o_proj"), h, out, C, C);
      this.add();
      this.norm(weight("post_attention_layernorm"));
      multiply(weight("mlp.gate_proj"), h, gate, inner, C);
      multiply(weight("mlp.up_proj"), h, up, inner, C);
      for (let i = 0; i < inner; i++) gate[i] *= up[i] / (1 + Math.exp(-gate[i]));
      multiply(weight("mlp.down_proj"), gate, out, C, inner);
      this.add();
    });
  }

  next(ids) { // the logits of what follows `ids`; what they begin with alike with those before is not read again
    let same = 0;
    while (same < ids.length - 1 && ids[same] === this.held[same]) same++;
    for (let at = same; at < ids.length; at++) this.read(ids[at], at);
    this.held = ids;
    this.norm(this.tensors["model.norm.weight"]);
    multiply(this.tensors["lm_head.weight"] ?? this.table, this.h, this.padded, this.logits.length, this.C);
    return this.logits;
  }
}

// Writing
function draw(scores, temperature) { // the index of the largest, or of one drawn
  const best = scores.reduce((at, score, i) => (score > scores[at] ? i : at), 0);
  if (!temperature) return best;
  const weights = scores.map((score) => Math.exp((score - scores[best]) / temperature));
  let left = Math.random() * weights.reduce((sum, weight) => sum + weight, 0);
  const drawn = weights.findIndex((weight) => (left -= weight) < 0);
  return drawn < 0 ? best : drawn;
}

const logSumExp = (logits) => {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  return most + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
};

// Token healing: how a prompt goes on that may end inside a token, as generate takes it.
function heal(model, tokenizer, prompt, temperature) {
  const context = model.config.max_position_embeddings, { pieces } = tokenizer, found = parseAddress(prompt);
  const longest = pieces.reduce((most, piece) => Math.max(most, piece.length), 0), scores = new Map();
  const score = (ids, from) => { // log-probability of ids[from:], given what stands before
    const key = ids.join();
    if (ids.length === from) return 0;
    if (!scores.has(key)) {
      const before = ids.slice(0, -1), known = score(before, from), logits = model.next(before);
      scores.set(key, known + logits[ids.at(-1)] - logSumExp(logits));
    }
    return scores.get(key);
  };
  let offset = 0, ids = [BOS, ...tokenizer.encode(prompt)];
  let text = tokenizer.decode(ids.length >= context ? slide(tokenizer, ids, context) : ids);
  if (found) {
    const sure = found.offset + prompt.length - found.length - longest;
    const windows = cut(tokenizer, found.path, tokenizer.encode(prompt.slice(found.length)), context, found.offset);
    offset = windows.filter((window) => window.offset === found.offset || window.offset <= sure).at(-1).offset;
    text = prompt.slice(found.length + offset - found.offset);
  }
  const candidates = [];
  for (let at = Math.max(0, text.length - longest); at <= text.length; at++) {
    const rest = text.slice(at), follow = range(pieces.length).filter(
      (id) => !rest || (pieces[id].startsWith(rest) && pieces[id].length > rest.length));
    if (!follow.length) continue;
    ids = tokenizer.encode(text.slice(0, at));
    const spans = found
      ? cut(tokenizer, found.path, ids, context, offset)
      : [{ head: [BOS], chunk: ids.slice(1 - context) }];
    const last = spans.at(-1);
    if (found && rest && last.head.length + last.chunk.length === context)
      spans.push({ head: opening(tokenizer, found.path, offset + at), chunk: [] });
    let sum = 0;
    spans.forEach(({ head, chunk }, i) => {
      ids = [...head, ...chunk];
      sum += score(ids, head.length) + (i + 1 < spans.length ? score([...ids, BOS], ids.length) : 0);
    });
    const logits = model.next(ids), all = logSumExp(logits);
    for (const token of follow) candidates.push({ ids, token, known: rest.length, score: sum + logits[token] - all });
  }
  return candidates[draw(candidates.map((candidate) => candidate.score), temperature)];
}

function* generate(model, tokenizer, start, temperature) { // yields the bytes of each token, and "" for a new window
  const context = model.config.max_position_embeddings;
  for (let { ids, token, known } = start; ; ) {
    const [after, piece] = advance(tokenizer, ids, token, context);
    if (!after) return;
    yield piece === null ? "" : piece.slice(known);
    if (piece !== null) known = 0;
    ids = after;
    token = draw(model.next(ids), temperature);
  }
}

// What the page asks for
let model, tokenizer, current; // current: the number of the text that is being written
const TURN = 100; // milliseconds between two looks at what the page says

function open({ about, pieces, weights }) {
  const text = atob(weights), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (sha256(bytes) !== about.weights_sha256) throw new Error("its weights are not whole");
  tokenizer = new Tokenizer(pieces);
  model = new Llama(about.config, readTensors(bytes, about.tensors, about.format));
}

// From a path, which begins a document, or from a prompt; no more than `limit` tokens.
async function write({ prompt, path, temperature, limit, job }) {
  const begun = performance.now();
  current = job;
  let text = path ? addressOf(path) : toBytes(prompt), fresh = path ? "" : text, tokens = 0, told = begun;
  const tell = (more) => {
    told = performance.now();
    postMessage({ job, text: toArray(fresh), tokens, seconds: (told - begun) / 1000, ...more });
    fresh = "";
  };
  const ids = path ? opening(tokenizer, path) : [];
  const start = path
    ? { ids, token: draw(model.next(ids), temperature), known: 0 }
    : heal(model, tokenizer, text, temperature);
  let full = false;
  for (const piece of generate(model, tokenizer, start, temperature)) {
    if ((full = tokens === limit && piece !== "")) break;
    text += piece;
    fresh += piece;
    tokens += piece !== "";
    if (performance.now() - told < TURN) continue;
    tell();
    await new Promise((resume) => setTimeout(resume));
    if (current !== job) return;
  }
  const found = parseAddress(text);
  tell({ ended: true, limit: full, found, sha256: found && sha256(toArray(text.slice(found.length))) });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.open) open(data.open);
    if (data.open) postMessage({ ready: true });
    if (data.write) await write(data.write);
    if (data.stop) current = null;
  } catch (error) {
    postMessage({ damaged: Boolean(data.open), job: data.write?.job, error: error.message });
  }
};
