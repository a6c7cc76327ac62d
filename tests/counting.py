"Kernels that a GPU would start, counted on the CPU; and how often the host waits for one that is there."
import collections
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# calls that give another view of a tensor, or memory without contents: no kernel runs
FREE = set("""_reshape_alias _unsafe_view alias as_strided detach empty empty_like empty_strided expand imag
    lift_fresh movedim new_empty new_empty_strided permute promote_types real select slice split
    split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as_complex view_as_real""".split())


class Launches(TorchDispatchMode):
    "Counts the operations that are run within, forward and backward, by name."
    def __init__(self):
        super().__init__()
        self.by_name = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE: self.by_name[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self): return sum(self.by_name.values())


def waits_of(f):
    "What `f` returns, and how often it made the host wait for the GPU, as torch itself counts."
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            result = f()
    finally: torch.cuda.set_sync_debug_mode("default")
    return result, sum("synchronizing" in str(w.message) for w in seen)
