"""The device, and the one rule for number formats.

Matrix products in training, those of the network and those of the optimizer, are computed in the format that the
device multiplies fast: bfloat16 if it has instructions for it, else float32. Weights, gradients and the optimizer's
state are float32 always. So are the network's products where it is decided what is right: the last rounds of mending,
the last look of a run, and writing.
"""
import contextlib
import copy
import ctypes
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from memory import processes
from memory.output import UserError, warn_once
from memory.versions import code_digest


def find_device(name):
    """torch.device for `cuda`, `mps`, `cpu` or `auto`. Raises UserError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(name for name in there if there[name])
    if not there.get(name):
        raise UserError(f"device {name} is not here; there is {', '.join(n for n in there if there[n])} (or auto)")
    return torch.device(name)


def has_bfloat16(device):
    """Whether the device has instructions for products in bfloat16. One without them emulates them, and a processor
    takes some 70 times as long as for float32 then."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (device.type == "cpu" and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported())


def find_dtype(name, device):
    """torch.dtype of training's matrix products: `auto` follows the rule above, `float32` and `bfloat16` override it.
    """
    if name == "auto":
        name = "bfloat16" if has_bfloat16(device) else "float32"
    return getattr(torch, name)


def warn_if_emulated(dtype, device):
    """Prints a warning if the device has no instructions for products in dtype."""
    if dtype == torch.bfloat16 and not has_bfloat16(device) and processes.rank() == 0:
        warn_once(f"this {device.type} has no instructions for bfloat16 and emulates them, which is slow: leave out "
                  f"--dtype")


def mixed(device, dtype):
    """Context in which matrix products run in dtype; float32 is left alone."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def to_device(array, device):
    """A numpy array as a tensor on the device; to a GPU the copy runs beside the computation."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def synchronize(device):
    """Waits for what the device still has to do, so that the clock is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    if device.type == "mps":
        torch.mps.synchronize()


def clock(device):
    """Seconds, once the device has done all that it was given."""
    synchronize(device)
    return time.perf_counter()


def native(name, library=None):
    """A function of the C library, or of another one, if it is there; elsewhere one that does nothing."""
    try:
        return getattr(ctypes.CDLL(library), name)
    except (AttributeError, OSError, TypeError):
        return lambda *_: None


@contextlib.contextmanager
def without_small_numbers():
    """Context in which numbers too small to be normal ones (below 1e-38) count as zero: a processor takes many times as
    long for them, and gradients at the end of a run are full of them. That is a property of each thread, which
    GNU's OpenMP hands on only to a thread that is new. So this thread and those of its pool are told, at both ends;
    other OpenMPs hand it on by themselves."""
    def tell(on):
        torch.set_flush_denormal(on)
        on_each = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: torch.set_flush_denormal(on) and None)
        native("GOMP_parallel", torch._C.__file__)(on_each, None, torch.get_num_threads(), 0)

    tell(True)
    try:
        yield
    finally:
        tell(False)


def tune_cpu():
    """Two settings that make a step faster; to be called before the first tensor. The C library keeps the memory that
    torch frees: it would hand large blocks back to the system, and a step would get its logits in fresh pages each
    time, which takes as long as the product that fills them. Only glibc does so. And torch asks Linux for large pages,
    of which the processor has to look up fewer. Elsewhere nothing changes."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    mallopt = native("mallopt")
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def hand_back_memory():
    """Hands back what tune_cpu kept. Blocks of ever other sizes leave holes that none fits into, so that the
    process would grow for hours. The next step takes some seconds longer: call it once in a while."""
    native("malloc_trim")(0)


def compiled(objective, batches, formats):
    """(a copy of the objective under torch.compile, True) if the compiler manages the forward and backward pass of all
    batches in all number formats; else (the objective, False) and a warning, or a UserError if there are several
    processes. formats: torch.dtypes, to which its `dtype` may be set later."""
    attempt = copy.copy(objective)
    try:
        attempt.compile()
        for dtype in dict.fromkeys(formats):
            attempt.dtype = dtype
            for batch in batches:
                attempt(*batch).backward()
        attempt.dtype = objective.dtype
        return attempt, True
    except Exception as error:  # whatever a compiler may raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    finally:
        objective.zero_grad(set_to_none=True)
    if processes.count() > 1:
        raise UserError(f"torch.compile does not work here ({reason}): add --compile=false")
    print(f"torch.compile does not work here ({reason}): going on without", file=sys.stderr)
    return objective, False


def make_deterministic():
    """Makes torch compute the same bits in every run. Raises UserError if the compiler's cache cannot be written: torch
    opens it here, also for a run that does not compile."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.use_deterministic_algorithms(True)
    except OSError as error:
        raise UserError(f"torch cannot use its cache folder {error.filename} ({error.strerror}): set "
                        f"TORCHINDUCTOR_CACHE_DIR to a folder that can be written") from None


def surroundings(device, dtype, works):
    """What besides data and settings decides the bits of the weights, as JSON holds it."""
    try:
        processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        processor = platform.processor()
    return {
        **{name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
        "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor}, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "processes": processes.count(), "compile": works, "code": code_digest()[:16]}


def memory_size():
    """Bytes of memory that the machine has, or None if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        pass
    status = (ctypes.c_uint64 * 8)(64)  # Windows' MEMORYSTATUSEX: its size in bytes, the memory there is, and more
    try:
        return status[1] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    except AttributeError:
        return None


def check_memory(config, tokens, device, classes=0):
    """Raises UserError if memory cannot hold a model of that config with its gradients and its optimizer, and a step's
    logits. tokens: computed at once. classes: of a sampled softmax, at most, without the rivals of mending; 0: the
    whole vocabulary."""
    needed = 16 * (config.num_parameters + tokens * min(classes or config.vocab_size, config.vocab_size))  # bytes
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_size()
    if there and needed > there:
        raise UserError(f"{config.num_parameters:.4g} parameters and {tokens:.4g} tokens at once take "
                        f"{needed / 2**30:.4g} GiB, and {device.type} has {there / 2**30:,.0f}: choose a smaller "
                        f"model, batch_size or micro_batch")
