"""A race of bench.py: this project and transformers, each from nothing until every token is right."""
import copy
import dataclasses
import json
import math
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch
import transformers  # which only bench.py needs: tests/requirements.txt

from memory.chart import chart
from memory.device import clock, mixed, to_device
from memory.evaluate import count_wrong
from memory.output import progress
from memory.patch import run
from memory.windows import Windows

FIRST = 10  # passes over the windows in transformers' shortest runs
WARMUP = 0.05  # the share of such a run in which its learning rate rises
NEARBY = (5 / 8, 3 / 4, 7 / 8, 3 / 2)  # once some passes are enough, these shares of them are tried too


@dataclasses.dataclass
class Race:
    """What both contenders share."""
    training: object  # train.Settings, those of a config
    data: Path  # the prepared tree
    windows: Windows
    device: torch.device
    dtype: torch.dtype

    @property
    def every(self):
        """Steps from one look to the next: a pass."""
        return -(-len(self.windows) // self.training.batch_size)

    def point(self, step, passes, seconds, wrong, exact):
        """What a look found, as a dict. seconds: of the steps so far."""
        return {"step": step, "passes": passes, "minutes": seconds / 60, "wrong": int(wrong),
                "files_exact": int(exact)}


def result(name, curve, seconds, **more):
    """A run as a dict. curve: what its looks found; seconds: all that it took, looks and compilation too."""
    won = curve[-1]["wrong"] == 0
    return {"name": name, "minutes": curve[-1]["minutes"] if won else None, "minutes_in_all": seconds / 60, **more,
            "curve": curve}


def our_run(race, config):
    """The run of train.py with that config, as a user starts it, but for its table."""
    with tempfile.TemporaryDirectory() as folder:
        started, out = time.perf_counter(), Path(folder) / "this project"
        run(["train.py", config, f"--data={race.data}", f"--out={out}", f"--eval_every={race.every}",
             f"--device={race.device.type}"], out)
        seconds = time.perf_counter() - started
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    curve = [race.point(line["step"], line["epoch"], line["seconds"], line["wrong"], line["files_exact"])
             for line in lines if "wrong" in line]
    end = next((i for i, at in enumerate(curve, 1) if not at["wrong"]), None)  # train.py goes on until no lead is small
    return result("this project", curve[:end], seconds)


class Rival:
    """transformers' LlamaForCausalLM under AdamW, with what its Trainer sets by itself: betas of 0.9 and 0.999, no
    weight decay, gradients of a norm of at most 1, a linear decay of the rate; and a linear warm-up before it."""

    def __init__(self, race, model, way, step_seconds):
        """model: with random weights, from which every run starts. way: "compiled" or "eager". step_seconds: what a
        step takes then, about."""
        self.race, self.way, self.step_seconds = race, way, step_seconds
        self.model, self.first_weights = model, copy.deepcopy(model.state_dict())
        self.network = torch.compile(model, dynamic=False) if way == "compiled" else model
        started = clock(race.device)
        self.backward(np.arange(race.training.batch_size) % len(race.windows))
        self.compile_seconds = clock(race.device) - started

    def backward(self, indices):
        """The gradients of a batch, the windows `indices`; only what a race counts is learned."""
        inputs, targets = (to_device(array, self.race.device).contiguous()
                           for array in self.race.windows.rows(indices))
        with mixed(self.race.device, self.race.dtype):  # shift_labels: the next tokens already
            loss = self.network(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()

    def run(self, rate, passes, limit=math.inf):
        """A run from the first weights with that peak learning rate, planned for so many passes over the windows. It
        ends before if a look finds every token right, or after about `limit` steps."""
        race, size, rows = self.race, self.race.training.batch_size, len(self.race.windows)
        steps = max(1, round(passes * rows / size))
        self.model.load_state_dict(self.first_weights)
        self.model.zero_grad()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.0,
                                      fused=race.device.type != "mps")
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)
        random = np.random.default_rng(race.training.seed)
        order = np.concatenate([random.permutation(rows) for _ in range(-(-steps * size // rows))])
        curve, seconds, began = [], 0.0, clock(race.device)
        what = f"transformers, {rate:g}, {passes:.0f} passes"
        with progress(total=min(steps, limit), desc=what, unit=" steps") as bar:
            for first in range(0, min(steps, limit), race.every):
                block, started = range(first, min(first + race.every, steps)), clock(race.device)
                for step in block:
                    self.backward(order[step * size:(step + 1) * size])
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                seconds += clock(race.device) - started
                curve.append(race.point(block.stop, block.stop * size / rows, seconds, *self.look()))
                bar.update(len(block))
                if curve[-1]["wrong"] == 0:
                    break
        return result(f"transformers, {self.way}, AdamW at {rate:g}, {passes:.0f} passes planned", curve,
                      clock(race.device) - began + self.compile_seconds, learning_rate=rate, planned_passes=passes)

    def look(self):
        """(wrong tokens, exact files) in a full pass in float32."""
        windows = self.race.windows
        view = types.SimpleNamespace(  # what count_wrong takes from a model
            model=lambda tokens: self.model.model(tokens, use_cache=False).last_hidden_state,
            lm_head=self.model.lm_head)
        wrong, *_ = count_wrong(view, windows, self.race.device)
        return wrong.sum(), len(windows.files) - len(np.unique(windows.file[wrong > 0]))


def soonest(runs):
    """The run with every token right after the fewest steps; if there is none, that with the fewest wrong."""
    return min(runs, key=lambda run: (run["curve"][-1]["wrong"], run["curve"][-1]["step"]))


def their_runs(rival, rates, minutes, told):
    """All runs of the rival, as a list of dicts; told: a function that is given each as it ends.

    Every rate has a run of FIRST passes, of twice as many, and so on, until one run has every token right or is as long
    as `minutes` allow. Then the best rate has the lengths NEARBY. A run ends once another was sooner.
    """
    runs, race, passes = [], rival.race, 0
    longest = 60 * minutes / (rival.step_seconds * len(race.windows) / race.training.batch_size)  # in passes

    def run(rate, passes):
        right = [made["curve"][-1]["step"] for made in runs if made["minutes"] is not None]
        runs.append(rival.run(rate, passes, min(right, default=math.inf)))
        told(runs[-1])

    while not runs or soonest(runs)["minutes"] is None and passes < longest:
        passes = min(2 * passes or FIRST, longest)
        for rate in rates:
            run(rate, passes)
    best = soonest(runs)
    for share in NEARBY if best["minutes"] is not None else ():
        run(best["learning_rate"], share * passes)
    return runs


def show_run(run, file):
    """Prints how a run ended."""
    last = run["curve"][-1]
    print(f"{run['name']}: {last['wrong']:,} tokens wrong, {last['files_exact']:,} files exact after "
          f"{last['step']:,} steps, {last['passes']:.1f} passes, {last['minutes']:.2f} min "
          f"({run['minutes_in_all']:.2f} with looks and compilation)", file=file)


def show_race(figures, file):
    """Prints who won."""
    print(f"\n{figures['files']:,} files, {figures['tokens']:,} tokens, {figures['parameters']:,} parameters",
          file=file)
    for who in ("this project", "transformers"):
        show_run(figures[who], file)
    if figures["sooner"]:
        print(f"until every token is right, transformers takes {figures['sooner']:.2f} times as long", file=file)


def race_picture(figures):
    """The race as an SVG."""
    contenders = {"this project": figures["this project"],
                  "transformers' Llama, AdamW at its best rate and length": figures["transformers"]}
    names = [f"{name}: every token right after {run['minutes']:.3g} minutes" if run["minutes"] is not None else
             f"{name}: {run['curve'][-1]['wrong']:,} tokens wrong after {run['curve'][-1]['minutes']:.3g} minutes"
             for name, run in contenders.items()]
    curves = [run["curve"] for run in contenders.values()]
    return chart(
        f"From nothing until {figures['files']:,} files of {figures['tree']} are known by heart", names,
        {f"next tokens right, of {figures['tokens']:,}":
         [[(at["minutes"], 1 - at["wrong"] / figures["tokens"]) for at in curve] for curve in curves],
         f"files exact, of {figures['files']:,}":
         [[(at["minutes"], at["files_exact"] / figures["files"]) for at in curve] for curve in curves]},
        "minutes of training")
