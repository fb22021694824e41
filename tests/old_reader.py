"""Opens a file with torch.load, in any torch since 1.0 and any Python since 2.7, and says as JSON what is in it.

A file whose name has `--train` before it is a checkpoint of `network` and its optimizer: training goes on from there.

It is run by old interpreters beside this project's own, so it imports nothing of it.
"""

# ruff: noqa: UP003, UP004, UP010, UP031, RUF005 - it has to run in Python 2.7 as well
from __future__ import unicode_literals

import ctypes
import hashlib
import json
import sys
import warnings

import torch


class Describer(object):
    """Objects as lists that JSON can say; tensors by their flags and digests, and by which of them share memory."""

    def __init__(self):
        self.objects = {}
        self.storages = {}

    def describe(self, value):
        """One value and all that it holds."""
        kind = type(value)
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if value is None or kind is bool:
            return [str(value)]
        if isinstance(value, kind_of_int()):
            return ["int", str(value)]
        if kind is float:
            return ["float", value.hex()]
        if kind is complex:
            return ["complex", value.real.hex(), value.imag.hex()]
        if kind is type(""):
            return ["text", value]
        if kind in (bytes, bytearray):
            return ["bytes" if kind is bytes else "bytearray", list(bytearray(value))]
        if kind in (torch.dtype, torch.device, torch.Size):
            return [kind.__name__, str(value)]
        if isinstance(value, dict):
            return self.mapping(value)
        if kind in (set, frozenset):
            return ["set", sorted((self.describe(member) for member in value), key=json.dumps)]
        if kind in (list, tuple):
            return [kind.__name__, [self.describe(child) for child in value]]
        return ["something else", kind.__name__]

    def mapping(self, value):
        """A dict; of those that keep no order by their keys, so that all Pythons say the same."""
        name = type(value).__name__
        keys = list(value)
        if name != "OrderedDict":
            keys.sort(key=lambda key: json.dumps(Describer().describe(key)))
        said = [[self.describe(key), self.describe(value[key])] for key in keys]
        metadata = getattr(value, "_metadata", None)
        return [name, said, None if metadata is None else self.describe(metadata)]

    def tensor(self, value):
        """Everything of a tensor; the numbers at the end are equal where two are one, or have one memory."""
        said = ["parameter" if isinstance(value, torch.nn.Parameter) else "tensor", str(value.dtype)]
        said += [list(value.shape), bool(value.requires_grad)]
        plain = value.detach()
        if str(plain.layout) == "torch.sparse_coo":
            parts = [plain._indices(), plain._values()]
            return said + ["coo"] + [digest(part) for part in parts] + [same(self.objects, id(value))]
        if str(plain.layout) != "torch.strided":
            parts = [plain.crow_indices(), plain.col_indices(), plain.values()]
            return said + [str(plain.layout)] + [digest(part) for part in parts] + [same(self.objects, id(value))]
        if plain.device.type == "meta":
            return said + ["meta", list(plain.stride())]
        said += [list(plain.stride()) if plain.numel() else [], plain.storage_offset()]
        if getattr(plain, "is_quantized", False):
            return said + quantized(plain) + [same(self.objects, id(value))]
        where = plain.storage().data_ptr() if plain.numel() else None
        said += [digest(plain), same(self.objects, id(value)) if said[0] == "parameter" else None]
        return said + [same(self.storages, where) if where else None]


def kind_of_int():
    """`int`, and `long` where it is another."""
    return (int, type(1 << 80))


def same(known, key):
    """A number for a key: the first one gets 0, and one that was there before gets the number it had."""
    return known.setdefault(key, len(known))


def digest(tensor):
    """SHA-256 of the elements in a row."""
    flat = tensor.contiguous()
    nbytes = flat.numel() * flat.element_size()
    return hashlib.sha256(ctypes.string_at(flat.data_ptr(), nbytes) if nbytes else b"").hexdigest()


def quantized(tensor):
    """The integers and what they mean."""
    if tensor.qscheme() == torch.per_tensor_affine:
        return [digest(tensor.int_repr()), tensor.q_scale().hex(), tensor.q_zero_point()]
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return [digest(tensor.int_repr()), digest(scales.double()), digest(zeros.long()), tensor.q_per_channel_axis()]


def network():
    """What a training checkpoint is of, and its optimizer."""
    layers = [torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2)]
    model = torch.nn.Sequential(*layers)
    return model, torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)


def steps(model, optimizer, inputs, count):
    """Train for some steps; the losses."""
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = model(inputs).pow(2).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def trained_on(path):
    """The losses of five more steps from a checkpoint on."""
    saved = torch.load(path)
    model, optimizer = network()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return steps(model, optimizer, saved["inputs"], 5)


def main():
    """Answer one line for each file: what is in it, or why it cannot be opened."""
    warnings.simplefilter("ignore")
    print(json.dumps([torch.__version__, sys.version.split()[0]]))
    paths = iter(sys.argv[1:])
    for path in paths:
        try:
            said = trained_on(next(paths)) if path == "--train" else Describer().describe(torch.load(path))
        except Exception as error:
            said = ["error", "%s: %s" % (type(error).__name__, str(error)[:300])]
        print(json.dumps(said))


if __name__ == "__main__":
    main()
