"""How fast, beside what a user could pick instead.

    pip install -r tests/requirements.txt && python bench.py
    python bench.py --config configs/quick.py --model out/quick --json bench.json
    python bench.py --race --picture race.svg  # from nothing until every token is right, here and with transformers
    python bench.py --patch --model out/quick  # a patched tree, learned from the weights of the old one

Speed is measured in one process, in turn, over and over, and the medians are given with the slowest and fastest turn:
so what else the machine does falls on all alike. A training step is forward, backward and optimizer, on random tokens;
generation is greedy, from the same weights, and must give the same text. All contenders compute a batch in one part,
whatever the config's micro_batch.

A race is between train.py with a config and what a user could write with transformers instead: its Llama of the same
size under AdamW, on the same files, windows and batches, compiled if that is faster. The rival chooses its best: of
several learning rates and lengths, each run with a decay planned for its length, the soonest alone counts, and the
search for it does not. It learns nothing but the tokens that are counted, and train.py learns the paths as well.
Both are looked at once a pass, but train.py once a round while it mends, and the race ends with the first look, in
float32, that finds every token right, though train.py goes on until every one has some lead. The minutes are
those of the steps: looks and compilation are left out for both. Minutes with them are given too.

A patch changes the tree that a model learned, in several ways that the model's seed draws: a line, 1% and 10% of the
lines, a file more or less. Each patched tree is learned with --init_from, and what that takes stands beside what the
model's own run took. Minutes are those of the steps, and in all with looks and compilation. See docs/patch.md.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from memory.corpus import choose_files, find_tree, fitting, load, read_manifest
from memory.device import check_memory, clock, find_device, find_dtype, mixed, surroundings, to_device, tune_cpu
from memory.device import without_small_numbers
from memory.files import STDOUT, newest, write_result
from memory.generate import generate, recite
from memory.optim import make_optimizers, update
from memory.output import UserError, progress, run_script
from memory.patch import PATCH_HEAD, Base, measure, patches, show_patch
from memory.race import Race, Rival, our_run, race_picture, show_race, show_run, soonest, their_runs
from memory.sampler import make_batch
from memory.settings import parse
from memory.windows import Windows, opening
from model import Llama, LlamaConfig, load_model
from train import Objective, check
from train import Settings as Training
from verify import read_record

STREAMS = 64
ORIGINAL = LlamaConfig(32768, 64, 256, 8, 32, 4, 512, False)  # the shape of mjbommar/laam


@dataclasses.dataclass
class Settings:
    config: str = ""  # whose model and optimizer; if left out configs/memorize.py, for a race configs/quick.py
    vocab_size: int = 32768  # of the model that is timed in training
    model: str = ""  # whose generation is timed, or whose tree is patched; the newest under out/ if left out
    repeats: int = 5  # turns of everything, after one that warms up
    new_tokens: int = 100  # tokens to generate for each stream
    device: str = "auto"  # cuda, mps or cpu; auto: the first that is there
    race: bool = False  # instead, a race with transformers on the files of the config
    race_rates: tuple = ("1e-3", "3e-3", "1e-2")  # peak learning rates of transformers in it; the best one counts
    race_minutes: float = 30.0  # the longest run of transformers in it, in minutes of steps
    patch: bool = False  # instead, what it takes a model to learn patches of its tree
    picture: str = ""  # draw the race into this file, an SVG
    data: str = ""  # the prepared tree; if left out the newest, and for a patch the one that was learned
    json: str = ""  # write the figures into this file too; -: to standard output, and the table to standard error


def timed_step(forward, update, device):
    """A function that makes one training step, of forward() and its result's backward() and update(), and returns the
    seconds of each, array (3,)."""
    def step():
        times = [clock(device)]
        loss = forward()
        times.append(clock(device))
        loss.backward()
        times.append(clock(device))
        update()
        times.append(clock(device))
        return np.diff(times)
    return step


class RandomWindows:
    """Random tokens in the place of a tree's Windows, all of them scored; some tokens often, most seldom, about as in
    text."""

    def __init__(self, vocab_size, context):
        self.vocab_size, self.context = vocab_size, context
        self.counts = np.bincount(self.batch(range(2**22 // context), 1)[0].flatten(), minlength=vocab_size)

    def batch(self, indices, seed):
        """(inputs, targets), int64 (B, context)."""
        shape = (2, len(indices), self.context)
        return (self.vocab_size * np.random.default_rng(seed).random(shape) ** 5).astype(np.int64)

    def paths(self, indices):
        """None, in the five arrays of Windows."""
        return (np.empty(0, np.int64),) * 4 + (np.empty(0, np.float32),)


def our_step(training, config, device, dtype):
    """(a training step as train.py makes it, timed; the operations of its products)."""
    model = Llama(config, torch.Generator().manual_seed(0)).to(device)
    optimizers, objective = make_optimizers(model, training, dtype), Objective(model, dtype)
    objective.compile()
    windows = RandomWindows(config.vocab_size, config.max_position_embeddings)
    (batch,) = make_batch(
        windows, np.arange(training.batch_size), (0, 0), training.negatives, np.empty(0, int), training.focal,
        device)
    blocks = config.num_parameters - (2 - config.tie_word_embeddings) * config.vocab_size * config.hidden_size
    operations = 6 * len(batch[1]) * (blocks + config.hidden_size * len(batch[5]))  # places, classes
    return timed_step(lambda: objective(*batch), lambda: update(optimizers, 1e-3), device), operations


def their_model(config):
    """transformers' LlamaForCausalLM of a LlamaConfig's sizes, with random weights."""
    sizes = dataclasses.asdict(config)
    theta = sizes.pop("rope_theta")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **sizes, rope_parameters={"rope_type": "default", "rope_theta": theta}))


def their_step(config, batch_size, device, dtype, compiled):
    """The same of transformers' LlamaForCausalLM under AdamW."""
    model = their_model(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type != "mps")
    network = torch.compile(model, dynamic=False) if compiled else model
    windows = RandomWindows(config.vocab_size, config.max_position_embeddings)
    inputs, targets = (to_device(array, device) for array in windows.batch(range(batch_size), 0))

    def forward():
        with mixed(device, dtype):
            return network(input_ids=inputs, labels=targets).loss

    def update():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return timed_step(forward, update, device)


def matrix_product(device, dtype, size=2048):
    """A function that multiplies two square matrices, and its floating-point operations."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    return (lambda: a @ a), 2 * size**3


def in_turn(contenders, repeats, device):
    """{name: seconds of each turn, array (repeats,), or of its parts, (repeats, parts), if the function returns them}
    of the functions in {name: function}; one that fails is left out and its name mapped to the reason."""
    times, failed = {name: [] for name in contenders}, {}
    with progress(total=len(contenders) * (repeats + 1), unit=" turns") as bar:
        for turn in range(repeats + 1):
            for name, work in contenders.items():
                bar.set_description(str(name)[:40])
                bar.update()
                if name in failed:
                    continue
                try:
                    started = clock(device)
                    parts = work()
                    seconds = parts if isinstance(parts, np.ndarray) else clock(device) - started
                except Exception as error:  # a contender that does not work here is a result, not an end
                    failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}"
                    continue
                if turn:  # the first compiles and warms up
                    times[name].append(seconds)
    return {name: failed.get(name) or np.array(seconds) for name, seconds in times.items()}


def training_steps(training, config, repeats, device, formats):
    """({name: (format, tokens, operations of its products or None, seconds of forward, backward and optimizer in each
    turn, array (repeats, 3), or the reason why there are none)} of training steps; {format: operations/s that matrix
    products reach in it})."""
    tokens, steps, products = training.batch_size * config.max_position_embeddings, {}, {}
    for dtype in formats:
        short = str(dtype).removeprefix("torch.")
        step, operations = our_step(training, config, device, dtype)
        steps[f"this project, {short}"] = dtype, tokens, operations, step
        for way in ("compiled", "eager"):
            steps[f"transformers, {short}, {way}"] = dtype, tokens, 6 * config.num_parameters * tokens, their_step(
                config, training.batch_size, device, dtype, way == "compiled")
        products[dtype], operations = matrix_product(device, dtype)
    steps["the original's shape"] = formats[-1], 4 * 512, None, their_step(ORIGINAL, 4, device, formats[-1], False)
    times = in_turn(products | {name: step for name, (*_, step) in steps.items()}, repeats, device)
    peaks = {dtype: float(operations / np.median(times[dtype])) for dtype in products}
    return {name: (*about, times[name]) for name, (*about, _) in steps.items()}, peaks


def writing_rates(folder, n, repeats, device):
    """{name: tokens/s of each turn, array (repeats,)} of writing n tokens with the model in `folder`, one text alone
    and STREAMS side by side. Raises UserError if the texts are not the same here and there."""
    model, tokenizer, manifest = load_model(folder, device)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    transformers.logging.set_verbosity_error()
    context = model.config.max_position_embeddings
    paths = [file["path"] for file in manifest["files"] if file["tokens"] > context]
    if not paths or max(len(opening(tokenizer, path)) for path in paths) + n > context:
        raise UserError(f"new_tokens {n} does not fit after the paths of the model's files of more than one context "
                        f"of {context} tokens; there are {len(paths)}")
    starts = [opening(tokenizer, paths[i % len(paths)]) for i in range(STREAMS)]

    def one():
        return [b"".join(generate(model, tokenizer, f"{paths[0]} ".encode(), n))]

    def many():
        return recite(model, tokenizer, starts, [n] * STREAMS, STREAMS)

    def their(starts):
        width = max(map(len, starts))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in starts], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in starts], device=device)
        written = theirs.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False)[:, width:]
        return [tokenizer.decode(row) for row in written.tolist()]

    for ours, others in [(one(), their(starts[:1])), (many(), their(starts))]:
        differ = sum(a != b for a, b in zip(ours, others))
        if differ:
            raise UserError(f"{differ} of {len(ours)} texts are not what transformers writes, so the times would not "
                            f"compare: name a --model that has every token right")
    times = in_turn({"this project, 1 stream": one, "transformers, 1 stream": lambda: their(starts[:1]),
                     f"this project, {STREAMS} streams": many,
                     f"transformers, {STREAMS} streams": lambda: their(starts)}, repeats, device)
    return {name: t if isinstance(t, str) else (n if " 1 " in name else n * STREAMS) / t for name, t in times.items()}


def compare(medians, formats):
    """{what: ratio} of the median rates, {name: tokens/s}, of this project and others."""
    ratios = {}
    names = [str(dtype).removeprefix("torch.") for dtype in formats]
    for short in names:
        theirs = {way: medians[f"transformers, {short}, {way}"] for way in ("compiled", "eager")}
        best = max(theirs, key=lambda way: np.nan_to_num(theirs[way]))
        ratios[f"training in {short} against transformers, {best}"] = medians[f"this project, {short}"] / theirs[best]
    ours = medians[f"this project, {names[-1]}"]
    ratios["training against the original's shape"] = ours / medians["the original's shape"]
    one, many = "1 stream", f"{STREAMS} streams"
    for ours, theirs in [(one, one), (many, one), (many, many)]:
        ratios[f"{ours} against transformers' {theirs}"] = (
            medians[f"this project, {ours}"] / medians[f"transformers, {theirs}"])
    return ratios


def show_steps(steps, peaks, file):
    """Prints where a training step goes, as medians."""
    print(f"{'a step, ms':30} {'forward':>10} {'backward':>10} {'optimizer':>10} {'all':>7} {'of peak':>8}", file=file)
    for name, (dtype, _, operations, times) in steps.items():
        if isinstance(times, str):
            print(f"{name:30} does not work here", file=file)
            continue
        total = np.median(times.sum(1))
        parts = " ".join(f"{1e3 * part:5,.0f} {part / total:4.0%}" for part in np.median(times, axis=0))
        known = f"{operations / total / peaks[dtype]:8.0%}" if operations else ""
        print(f"{name:30} {parts} {1e3 * total:7,.0f} {known}", file=file)
    reached = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}"
                        for dtype, peak in peaks.items())
    print(f"the peak, products of 2048 x 2048: {reached}", file=file)


def race_figures(settings, device, dtype, told):
    """A race, as JSON holds it. told: a function that is given each run, a dict, as it ends. Raises UserError."""
    path, rates = settings.config or "configs/quick.py", learning_rates(settings.race_rates)
    training, _ = parse(Training, "", [path], config=True)
    check(training)
    folder = Path(settings.data or newest("prepared tree"))
    tree, tokenizer, tokens = load(folder)
    files, _ = choose_files(fitting(tree["files"], tokenizer, training), training)
    config = LlamaConfig.of(training, tokenizer.vocab_size)
    check_memory(config, training.batch_size * config.max_position_embeddings, device)
    windows = Windows(tokens, files, tokenizer, config.max_position_embeddings)
    race = Race(training, folder, windows, device, dtype)
    ours = our_run(race, path)
    told(ours)
    times = in_turn({way: their_step(config, training.batch_size, device, dtype, way == "compiled")
                     for way in ("eager", "compiled")}, settings.repeats, device)
    seconds = {way: float(np.median(t.sum(1))) for way, t in times.items() if not isinstance(t, str)}
    if not seconds:
        raise UserError(f"transformers cannot train this model here: {times['eager']}")
    way = min(seconds, key=seconds.get)
    torch.manual_seed(training.seed)
    rival = Rival(race, their_model(config).to(device), way, seconds[way])
    runs = their_runs(rival, rates, settings.race_minutes, told)
    theirs = soonest(runs)
    both = ours["minutes"] is not None and theirs["minutes"] is not None
    return {
        "tree": tree["name"], "files": len(files), "bytes": sum(file["bytes"] for file in files),
        "tokens": windows.scored, "windows": len(windows), "parameters": config.num_parameters,
        "sooner": theirs["minutes"] / ours["minutes"] if both else None,
        "this project": ours, "transformers": theirs, "all runs of transformers": runs,
        "settings": dataclasses.asdict(settings) | {"config": path, "data": str(folder)},
        "environment": surroundings(device, dtype, way == "compiled") | {"transformers": transformers.__version__}}


def patch_figures(settings, device, dtype, file):
    """What patches of a model's tree take, printed one by one, as JSON holds it. Raises UserError."""
    folder = Path(settings.model or newest("model"))
    data = find_tree(read_manifest(folder, "train or copy it again"), settings.data)
    if not data:
        raise UserError(f"no tree under data/ is the one that {folder} learned: prepare it again, or name --data")
    base, rows = Base.load(folder, read_record(folder), data, device), []
    print(f"{folder}: {base.steps:,} steps, {base.seconds / 60:.1f} min of them\n{PATCH_HEAD}", file=file)
    for name, files in patches(base.files, base.settings["seed"]).items():
        rows.append(measure(base, name, files))
        show_patch(rows[-1], file)
    return {
        "model": folder.resolve().name, "tree": data, "files": len(base.windows.files), "tokens": base.windows.scored,
        "windows": len(base.windows), "steps": base.steps, "seconds": base.seconds, "patches": rows,
        "settings": dataclasses.asdict(settings) | {"model": str(folder), "data": data},
        "environment": surroundings(device, dtype, base.settings["compile"])}


def learning_rates(texts):
    """The numbers that the texts name, as a list. Raises UserError for one that cannot be."""
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"race_rates takes numbers of more than 0, not {' '.join(texts)!r}")
    return rates


def speed_figures(settings, device, dtype, file):
    """Steps and writing, timed and printed; what JSON holds of them."""
    path = settings.config or "configs/memorize.py"
    training, _ = parse(Training, "", [path], config=True)
    check(training)
    config = LlamaConfig.of(training, settings.vocab_size)
    check_memory(config, training.batch_size * config.max_position_embeddings, device)
    folder = Path(settings.model or newest("model"))
    writing = writing_rates(folder, settings.new_tokens, settings.repeats, device)
    formats = list(dict.fromkeys((torch.float32, dtype)))
    steps, peaks = training_steps(training, config, settings.repeats, device, formats)
    rates = {name: t if isinstance(t, str) else size / t.sum(1) for name, (_, size, _, t) in steps.items()} | writing
    medians = {name: float("nan") if isinstance(rate, str) else float(np.median(rate)) for name, rate in rates.items()}
    ratios = compare(medians, formats)
    print(f"{path}: {config.num_parameters:,} parameters, {training.batch_size} windows of "
          f"{config.max_position_embeddings} tokens; {device.type}, {torch.get_num_threads()} threads; streams from "
          f"{folder}\n", file=file)
    show_steps(steps, peaks, file)
    print(f"\n{'tokens/s':44} {'median':>9} {'slowest':>9} {'fastest':>9}", file=file)
    for name, rate in rates.items():
        print(f"{name:44} " + ("does not work here" if isinstance(rate, str) else
                               f"{medians[name]:9,.0f} {rate.min():9,.0f} {rate.max():9,.0f}"), file=file)
    print(file=file)
    for name, ratio in ratios.items():
        print(f"{name:64} {ratio:.2f}", file=file)
    short = {dtype: str(dtype).removeprefix("torch.") for dtype in formats}
    return {
        "rates": {name: rate if isinstance(rate, str) else rate.tolist() for name, rate in rates.items()},
        "steps": {name: t if isinstance(t, str) else t.tolist() for name, (*_, t) in steps.items()},
        "ratios": ratios, "peaks": {short[dtype]: peak for dtype, peak in peaks.items()},
        "parameters": config.num_parameters,
        "settings": dataclasses.asdict(settings) | {"config": path, "model": str(folder)},
        "environment": surroundings(device, formats[-1], True) | {"transformers": transformers.__version__}}


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    if min(settings.repeats, settings.new_tokens, settings.vocab_size) < 1:
        raise UserError("repeats, new_tokens and vocab_size must be at least 1")
    if settings.picture and not settings.race:
        raise UserError("--picture is of a race: add --race")
    if settings.patch and settings.race:
        raise UserError("--patch and --race exclude each other")
    if settings.race_minutes <= 0:
        raise UserError(f"race_minutes must be more than 0, not {settings.race_minutes}")
    device = find_device(settings.device)
    dtype = find_dtype("auto", device)
    tune_cpu()  # for all contenders alike, though only this project's users have it
    news = sys.stderr if settings.json in STDOUT else sys.stdout
    with without_small_numbers():  # the same
        if settings.race:
            figures = race_figures(settings, device, dtype, lambda run: show_run(run, news))
            show_race(figures, news)
        elif settings.patch:
            figures = patch_figures(settings, device, dtype, news)
        else:
            figures = speed_figures(settings, device, dtype, news)
    if settings.json:
        write_result(settings.json, json.dumps(figures, indent=1).encode())
    if settings.race and settings.picture:
        write_result(settings.picture, race_picture(figures).encode())
    return 0


if __name__ == "__main__":
    run_script(main)
