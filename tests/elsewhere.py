"""A second device in Python alone. Its tensors say that they are on "elsewhere:0" and keep their numbers on
the CPU. Mixing devices raises, as on a GPU, and whatever a GPU would make the host wait for is counted.
It changes what torch knows of devices, so who registers it wants a process of its own."""
import collections

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KNOWN = ("2.14",)           # versions of torch whose internals this file has been tried with
aten = torch.ops.aten
waits = collections.Counter()


def unknown():
    "Why there is no such device with this version of torch, or an empty string."
    version = ".".join(torch.__version__.split(".")[:2])
    if version in KNOWN: return ""
    return f"a device in Python was tried with torch {', '.join(KNOWN)}, not with {version}"


def register():
    "Tell torch that there is a device of this name."
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Backend(_DummyBackendModule):
        def get_amp_supported_dtype(self): return [torch.float16, torch.bfloat16]

    _setup_privateuseone_for_python_backend("elsewhere", Backend())


class There(torch.Tensor):
    "A tensor on that device; `elem` holds its numbers."
    @staticmethod
    def __new__(cls, elem):
        form = dict(strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype)
        out = torch.Tensor._make_wrapper_subclass(cls, elem.size(), device="elsewhere:0", **form)
        out.elem = elem
        return out

    def __tensor_flatten__(self): return ["elem"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride): return There(inner["elem"])

    def tolist(self): return self.cpu().tolist()

    def __repr__(self): return f"There({self.elem})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


COPIES = {aten.copy_.default, aten._to_copy.default}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# how much comes out is known only when it is done
SIZED = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
         aten.equal.default, aten.repeat_interleave.Tensor, aten.bincount.default, aten._unique2.default}


def shapes(tensors): return [tuple(x.shape) for x in tensors]


def check(func, args, ours, host):
    "RuntimeError where a GPU would refuse to compute with tensors of both devices."
    mixed = ours and any(x.dim() for x in host) and func not in COPIES
    if mixed and func in BY_INDEX:
        values = args[2] if len(args) > 2 else None
        away = isinstance(values, torch.Tensor) and values.dim() and not isinstance(values, There)
        mixed = away or not isinstance(args[0], There)
    if mixed:
        raise RuntimeError(f"{func}: tensors of {shapes(ours)} elsewhere and of {shapes(host)} on the cpu")


def crosses(func, args, kwargs, target):
    "Does a copy between the devices make the host wait? Not one from pinned memory that does not block."
    source = args[1] if func is aten.copy_.default else args[0]
    here = [isinstance(x, There) for x in (source, args[0])]
    to_there = here[1] if func is aten.copy_.default else target == "elsewhere" or (here[0] and not target)
    if here[0] == to_there: return False
    quiet = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
    return not (to_there and quiet and getattr(source, "pinned", False))


def count(func, args, kwargs, ours, target):
    "Add to `waits` what a GPU would make the host wait for."
    if func in COPIES: waiting = crosses(func, args, kwargs, target)
    elif func in BY_INDEX and ours:
        index = [x for x in args[1] if x is not None]
        waiting = any(x.dtype == torch.bool or (x.dim() and not isinstance(x, There)) for x in index)
    else: waiting = bool(ours) and func in SIZED and kwargs.get("output_size") is None
    if waiting: waits[str(func)] += 1


def run(func, args, kwargs):
    "One operation: checked, counted, computed on the CPU, and its results put on the device they belong to."
    if func is aten.lift_fresh.default: return args[0]
    if func is aten.is_pinned.default: return getattr(args[0], "pinned", False)
    flat, spec = tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, There)]
    host = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    check(func, args, ours, host)
    count(func, args, kwargs, ours, target)
    if func is aten._pin_memory.default:
        out = args[0].clone()
        out.pinned = True
        return out
    a, k = tree_unflatten([x.elem if isinstance(x, There) else x for x in flat], spec)
    if target: k["device"] = torch.device("cpu")
    k.pop("pin_memory", None)
    out = func(*a, **k)
    if func is aten.copy_.default: return args[0]
    if target == "cpu" or not (ours or target == "elsewhere"): return out
    known = {id(x.elem): x for x in ours}
    def wrap(x):
        if id(x) in known: return known[id(x)]
        return There(x) if isinstance(x, torch.Tensor) else x
    return tree_map(wrap, out)


class Elsewhere(TorchDispatchMode):
    "Within, new tensors can be put there."
    def __enter__(self):
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})
