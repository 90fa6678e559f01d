"""A page that recites: one HTML file in which the weights write out, in any browser, what they know by heart.

    python recite.py                                   # the newest model -> out/<model>/recite.html
    python recite.py --model out/quick --out page.html

The page needs no network and no library. It holds the weights, the pieces, and the files' paths and hashes, and no text
of a file. The weights are rounded to int8 with a scale for each row, or to bfloat16, if every token is still right by a
lead that no order of summing could turn; else they stay float32. That takes the prepared tree.
"""
import memory  # noqa: I001  first, for Ctrl-C while the others are loaded
import base64
import dataclasses
import hashlib
import sys
from pathlib import Path

import torch

from extract import load_tree
from memory.device import find_device
from memory.evaluate import NOISE, examine
from memory.files import STDOUT, name_of, newest, write_file, write_result
from memory.output import run_script
from memory.page import as_json, fill
from memory.settings import parse
from memory.windows import Windows, unquote
from model import load_model
import openness

FORMATS = ("int8", "bfloat16", "float32")  # the smallest first
MARKS = 259  # pieces that every tokenizer begins with: three marks and the bytes


@dataclasses.dataclass
class Settings:
    model: str = ""  # folder of the model; the newest under out/ if left out
    data: str = ""  # folder that prepare.py wrote; one under data/ that fits the model if left out
    out: str = ""  # file for the page; recite.html in the model's folder if left out
    device: str = "auto"  # where the rounded weights are checked: cuda, mps, cpu; auto: the first that is there


def pack(tensor, kind):
    """(bytes, tensor): one float32 tensor as the page holds it, and the float32 values that the page makes of that.
    Vectors stay float32. A matrix in int8 has the scales of its rows first, float32."""
    if tensor.dim() == 1 or kind == "float32":
        return tensor.numpy().tobytes(), tensor
    if kind == "bfloat16":
        rounded = tensor.bfloat16()
        return rounded.view(torch.int16).numpy().tobytes(), rounded.float()
    scale = (tensor.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)  # a row of zeros has no scale
    steps = (tensor / scale).round()
    return scale.numpy().tobytes() + steps.to(torch.int8).numpy().tobytes(), steps * scale


def shapes(model):
    """[name, rows, columns] of each tensor, in the page's order; columns is 0 for a vector."""
    return [[name, *tensor.shape, 0][:3] for name, tensor in model.tensors().items()]


def sure(found):
    """Whether every token is right in a format tried, and no order of summing could turn one."""
    return not found["wrong"] and found["closest"] >= NOISE


def choose_format(model, windows, news):
    """(format, weights as bytes, [what was found of each format tried]): the smallest in which the model, which keeps
    the rounded weights, is sure of the windows; float32 if it is of none, or without windows."""
    tensors = {name: tensor.clone() for name, tensor in model.tensors().items()}
    tried = []
    for kind in FORMATS if windows else FORMATS[-1:]:
        packed = {name: pack(tensor, kind) for name, tensor in tensors.items()}
        weights = b"".join(data for data, _ in packed.values())
        if windows:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(packed[name][1])
            passed = examine(model, windows, model.lm_head.weight.device)
            found = {"format": kind, "bytes": len(weights), "wrong": sum(int((~right).sum()) for right, _, _ in passed),
                     "closest": min(float(abs(lead).min()) for _, _, lead in passed)}
            tried.append(found)
            print(f"{kind:9} {len(weights):>12,} bytes, {found['wrong']:,} of {windows.scored:,} tokens wrong, closest "
                  f"call {found['closest']:.4f} logits", file=news, flush=True)
            if sure(found):
                break
    return kind, weights, tried


def download_name(path):
    """[the name under which a file is saved], or [] if that is the last part of its quoted path."""
    name = name_of(unquote(path))
    return [name] * (name != path.rsplit("/", 1)[-1])


def describe_page(model, manifest, name, kind, tried):
    """What the page says of itself. name: of the model; kind: the format of its weights; tried: as choose_format gives
    it."""
    return {"model": name, "name": manifest["name"], "origin": manifest["origin"], "licence": manifest["licence"],
            "config": dataclasses.asdict(model.config), "parameters": model.config.num_parameters, "format": kind,
            "tried": tried, "tensors": shapes(model)}


def make_page(about, tokenizer, files, weights):
    """The page, as bytes. about: what the page says of itself, to which its sizes are added; files: entries of the
    manifest."""
    pieces = as_json([piece.decode() for piece in tokenizer.pieces[MARKS:]])
    rows = as_json([[file[key] for key in ("path", "bytes", "sha256", "tokens")] + download_name(file["path"])
                    for file in files])
    text = base64.b64encode(weights).decode()
    about |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_bytes": len(text),
              "pieces_bytes": len(pieces), "files_bytes": len(rows), "page_bytes": 0}
    while True:  # until the page says its own size right
        page = fill("recite.html", ABOUT=as_json(about), PIECES=pieces, FILES=rows, WEIGHTS=text)
        if len(page) == about["page_bytes"]:
            return page
        about["page_bytes"] = len(page)


def main(argv=None):
    settings = parse(Settings, __doc__, sys.argv[1:] if argv is None else argv)
    folder = Path(settings.model or newest("model"))
    model, tokenizer, manifest = load_model(folder, find_device(settings.device))
    news = sys.stderr if settings.out in STDOUT else sys.stdout
    data = load_tree(settings, manifest)
    windows = data and Windows(data[2], manifest["files"], tokenizer, model.config.max_position_embeddings)
    kind, weights, tried = choose_format(model, windows, news)
    if not windows:
        print("the prepared tree is not at hand: the weights stay float32, and are not verified", file=news)
    elif not sure(tried[-1]):
        print(f"warning: not every token is right by {NOISE:g} logits: the page may not recite every file",
              file=sys.stderr)
    about = describe_page(model, manifest, name_of(folder.resolve()), kind, tried)
    page = make_page(about, tokenizer, manifest["files"], weights)
    out = settings.out or folder / "recite.html"
    (write_result if settings.out else write_file)(out, page)
    if not settings.out:
        openness.renew_sums(folder)
    print(f"{out}: {len(page):,} bytes, weights in {kind}, {len(manifest['files']):,} files", file=news)
    return 0


if __name__ == "__main__":
    run_script(main)
