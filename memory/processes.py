"""Several processes, as torchrun starts them. A single process is a group of one, and pays nothing."""
import contextlib
import importlib
import os
import traceback

import torch
import torch.distributed as dist

from memory.output import UserError


def begin(device):
    """Joins the group that torchrun made, if it did; returns the torch.device of this process: of several GPUs the one
    with its local rank. Raises UserError if that cannot be."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        importlib.import_module("torch._dynamo")  # or it holds on to the group, whose threads abort Python at its end
        try:
            if device.type == "cuda":
                device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                if device.index >= torch.cuda.device_count():
                    raise UserError(f"process {device.index} of this machine finds {torch.cuda.device_count()} GPUs: "
                                    f"start no more processes than GPUs, or add --device=cpu")
                torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"cannot join the other processes, start them with torchrun: "
                            f"{str(error).splitlines()[0][:150]}") from None
    return device if device.type != "mps" or count() == 1 else torch.device("cpu")  # gloo has no MPS


@contextlib.contextmanager
def group(device, out):
    """Joins the other processes, if there are any, and gives the torch.device of this one. Raises UserError if they are
    lost on the way; out: the folder of the run."""
    device = begin(device)
    try:
        yield device
    except BaseException as error:
        if count() == 1:
            raise
        traceback.clear_frames(error.__traceback__)  # what holds the group goes first, or Python hangs at its end
        if not lost(error):
            raise
        raise UserError(f"process {rank()} of {count()} lost the others: {str(error).splitlines()[0][:100]}; what "
                        f"{out} holds is whole, and the same command goes on from there") from None
    finally:
        end()


def lost(error):
    """Whether an exception says that another process is gone."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")))


def end():
    """Leaves the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    """The number of this process; only number 0 writes files and talks."""
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine():
    """This process's share of what is shared out row by row, as a slice."""
    return slice(rank(), None, count())


def total(tensor):
    """The sum of a CPU tensor over all processes."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def most(number):
    """The largest of an int over all processes."""
    if count() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather(thing):
    """What every process gives, by rank, as a list."""
    if count() == 1:
        return [thing]
    things = [None] * count()
    dist.all_gather_object(things, thing)
    return things
