"""Which names in a file are harmless, which run code, and what to say about the rest.

Nothing of this guards the reader, which never runs anything. It tells the owner of a file what would have happened
had something else opened it. Lists of names can always be evaded, so a name that is merely unknown is reported too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..core.checkpoint import SEVERITIES, Finding
from ..core.tensors import DTYPES
from ..core.tree import Global
from ._pickle import Use

_SHOWN = 1000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules in which every name is taken for dangerous, with all modules below them.
_DENIED_MODULES = _words(
    """
    _io _pickle _posixsubprocess _pyrepl aiohttp asyncio bdb cProfile cloudpickle codeop commands concurrent ctypes
    dill distutils doctest ensurepip ftplib httpx idlelib imaplib imp importlib io joblib jsonpickle lib2to3 marshal
    multiprocessing nt ntpath numpy.f2py numpy.distutils numpy.testing operator _operator os pdb pickle pip pkgutil
    poplib popen2 posix posixpath pty pydoc requests rlcompleter runpy setuptools shelve shutil smtplib socket
    socketserver sqlite3 ssl subprocess sys sysconfig tarfile telnetlib tempfile _thread timeit torch._dynamo
    torch._inductor torch.compile torch.distributed.rpc torch.fx torch.hub torch.jit torch.library torch.ops
    torch.package torch.testing torch.utils.bottleneck torch.utils.collect_env torch.utils.cpp_extension
    torch.utils.data.datapipes torch.utils.model_zoo torch.utils.tensorboard urllib urllib2 urllib3 uu venv
    webbrowser winreg _winreg xmlrpc zipfile zipimport
    """
)

# The same for modules whose names people also give to packages of their own: only the module itself.
_DENIED_EXACTLY = _words(
    "code gc http.client inspect linecache logging.config mmap profile resource signal site trace unittest"
)

_BUILTIN_DANGERS = _words(
    """
    __build_class__ __import__ apply breakpoint compile delattr eval exec execfile exit file filter getattr globals
    help input locals map open quit raw_input reduce reload setattr vars
    """
)

_DENIED = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTIN_DANGERS} | _words(
    """
    functools.partial functools.partialmethod functools.reduce types.CodeType types.FunctionType types.LambdaType
    types.MethodType types.ModuleType types.new_class _functools.partial _functools.reduce numpy.load numpy.loads
    numpy.fromfile numpy.memmap numpy.save numpy.savetxt numpy.genfromtxt numpy.loadtxt pandas.read_pickle
    pandas.io.pickle.read_pickle torch.load torch.save torch.serialization.load torch.serialization.save
    torch.from_file torch._utils_internal.prepare_multiprocessing_environment
    copyreg.add_extension copyreg.pickle codecs.open _codecs.lookup
    """
)

_HARMLESS = _words(
    """
    _codecs.encode _io.BytesIO _io.StringIO io.BytesIO io.StringIO argparse.Namespace collections.Counter
    collections.OrderedDict collections.defaultdict collections.deque copyreg._reconstructor copy_reg._reconstructor
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone decimal.Decimal
    fractions.Fraction numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.dtype numpy.ndarray
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer pathlib.Path pathlib.PosixPath pathlib.PurePath
    pathlib.PurePosixPath pathlib.PureWindowsPath pathlib.WindowsPath pathlib._local.PosixPath torch.Size
    torch.device torch.Tensor torch._tensor.Tensor torch._tensor._rebuild_from_type
    torch._tensor._rebuild_from_type_v2 torch.tensor._rebuild_from_type torch.autograd.variable.Variable
    torch.jit._pickle.build_boollist torch.jit._pickle.build_doublelist torch.jit._pickle.build_intlist
    torch.jit._pickle.build_tensor_from_id torch.jit._pickle.build_tensorlist torch.jit._pickle.restore_type_tag
    torch.layout torch.memory_format torch.serialization._get_layout torch.storage._load_from_bytes
    torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
    torch.nn.backends.thnn._get_thnn_function_backend torch.torch_version.TorchVersion torchkeep.freezing.StayEval
    types.SimpleNamespace uuid.UUID
    """
)

_BUILTIN_VALUES = _words(
    """
    bool bytearray bytes complex dict float frozenset int list long object range set slice str tuple type unicode
    xrange Ellipsis NotImplemented
    """
)

_CLASS_NAME = re.compile(r"_*[A-Z]\w*")
_TORCH_VALUES = re.compile(r"torch\.(cuda\.|storage\.|sparse\.)*_?[A-Z]\w*(Storage|Tensor)|torch\._utils\._rebuild_\w+")
_TORCH_CLASSES = re.compile(r"torch\.(nn|optim|distributed\.(tensor|_shard|device_mesh))\b[\w.]*")
_QSCHEMES = re.compile(r"torch\.(q|per_)\w+|torch\.(strided|sparse_\w+|contiguous_format|channels_last\w*)")


def is_dangerous(named: Global) -> bool:
    """Whether a name is known to run code, or walks through attributes to hide what it names."""
    parts = named.module.split(".")
    heads = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    if named.qualified in _HARMLESS:
        return False
    if (
        heads & _DENIED_MODULES
        or named.module in _DENIED_EXACTLY
        or named.qualified in _DENIED
        or named.qualified in _DENIED_MODULES
    ):
        return True
    walk = named.name.split(".")
    return len(walk) > 1 and not all(_CLASS_NAME.fullmatch(step) for step in walk)  # classes inside classes are common


def is_harmless(named: Global, how: str) -> bool:
    """Whether a name is one that genuine files are full of."""
    full = named.qualified
    if named.module.split(".")[0] == "__torch__":  # a class of TorchScript, whose code is in the archive
        return True
    if full in _HARMLESS or _TORCH_VALUES.fullmatch(full) or _QSCHEMES.fullmatch(full):
        return True
    if named.module in {"builtins", "__builtin__"}:
        return named.name in _BUILTIN_VALUES and (named.name != "type" or how == "named")
    if named.module == "torch" and named.name in DTYPES:
        return True
    if named.module == "torch.nn.functional":
        return how == "named"
    if named.module.startswith("numpy.random"):
        return _CLASS_NAME.fullmatch(named.name) is not None or named.name.endswith("_ctor")
    return bool(_TORCH_CLASSES.fullmatch(named.module) and _CLASS_NAME.fullmatch(named.name))


def finding_of(named: Global, use: Use) -> Finding | None:
    """What to say about one name."""
    full, place = named.qualified[:300], f"{use.stream}, byte {use.position}"
    if is_dangerous(named):
        verb = "names" if use.how == "named" else "calls"
        return Finding("dangerous-global", "danger", f"{verb} {full}, which can run code", place)
    if is_harmless(named, use.how):
        return None
    if use.how == "called":
        return Finding("unknown-callable", "warning", f"calls {full}, which is not known to be harmless", place)
    verb = "has objects of" if use.how == "made" else "names"
    return Finding("custom-class", "info", f"{verb} {full}, which is no part of torch", place)


def findings_of(seen: Mapping[Global, Use]) -> tuple[Finding, ...]:
    """One finding for each name that is worth a word, the worst first."""
    found = [finding for finding in (finding_of(named, use) for named, use in seen.items()) if finding]
    found.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    if len(found) > _SHOWN:
        more = Finding("many-names", "warning", f"names {len(found) - _SHOWN:,} more classes and functions")
        return (*found[:_SHOWN], more)
    return tuple(found)


def dangers_in(seen: Mapping[Global, Use]) -> Iterator[str]:
    """The dangerous names among those that were met, for the message of an error."""
    return (named.qualified[:300] for named in seen if is_dangerous(named))
