"""Digests of the source of classes: the same for code that does the same in other spacing, words and Pythons."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from blake3 import blake3
from torch import nn

from ..core.live import STANDS_FOR, class_of

_DIGITS = 16
_APART = frozenset({"__init__", "__repr__", "__str__", "extra_repr", "__doc__"})
_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "annotation", "returns", "simple", "type_params", "type_ignores"})
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_of(module: nn.Module) -> dict[str, str]:
    """Method -> digest of its source, for what a module's class and its bases outside of torch define.

    A method that a class overrides is `Base.method`. Of a skeleton it is what its file says. Classes without a source
    that still is what runs have none.
    """
    part = module.__dict__.get(STANDS_FOR)
    cls: Any = class_of(module)
    return dict(part.code) if part is not None else dict(_code_of(cls))


def changed_methods(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Methods that compute something else than they did -> both digests."""
    return {
        name: (digest, now[name])
        for name, digest in before.items()
        if name.rpartition(".")[2] not in _APART and now.get(name, digest) != digest
    }


@lru_cache(maxsize=4096)
def _code_of(cls: type) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in {"torch", "builtins", "typing", "abc"}:
            continue
        for name, digest in _methods(base):
            found.setdefault(name if name not in found else f"{base.__name__}.{name}", digest)
    return tuple(found.items())


def _methods(cls: type) -> Iterator[tuple[str, str]]:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if module is None or not isinstance(file, str):
        return
    lines = linecache.getlines(file, vars(module))
    for node in _definitions("".join(lines), cls.__qualname__):
        if _is_what_runs(cls, node):
            yield from ((one.name, _digest(one)) for one in node.body if isinstance(one, _DEFINITIONS))
            return


@lru_cache(maxsize=64)
def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _definitions(text: str, qualname: str) -> list[ast.ClassDef]:
    """Every class of this name in a source; there may be several, under different conditions."""
    nodes: list[ast.AST] = [tree] if (tree := _tree(text)) is not None else []
    for name in qualname.split("."):
        if name != "<locals>":
            nodes = [one for node in nodes for one in _inside(node) if getattr(one, "name", None) == name]
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The definitions in the body of a module, class or function, those under conditions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, *_DEFINITIONS)):
            yield child
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _inside(child)


def _is_what_runs(cls: type, node: ast.ClassDef) -> bool:
    """Whether every function of the class begins where the source says, as far as that can be seen."""
    lines = {one.name: _first_line(one) for one in node.body if isinstance(one, _DEFINITIONS)}
    for name, line in lines.items():
        held = vars(cls).get(name)
        function = inspect.unwrap(held) if isinstance(held, types.FunctionType) else None
        own = isinstance(function, types.FunctionType) and function.__name__ == name
        if own and function is not None and function.__code__.co_firstlineno != line:
            return False
    return bool(lines)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _digest(node: ast.AST) -> str:
    hasher = blake3()
    _feed(node, hasher)
    return hasher.hexdigest(length=_DIGITS // 2)


def _feed(node: Any, hasher: Any) -> None:
    if isinstance(node, ast.AST):
        hasher.update(f"({type(node).__name__}".encode())
        for name, value in ast.iter_fields(node):
            if name in _LEFT_OUT or value is None or value == []:
                continue
            hasher.update(f" {name}=".encode())
            _feed(_without_docstring(value) if name == "body" else value, hasher)
        hasher.update(b")")
    elif isinstance(node, list):
        hasher.update(b"[")
        for one in node:
            _feed(one, hasher)
            hasher.update(b",")
        hasher.update(b"]")
    else:
        hasher.update(f"{type(node).__name__}:{node!r}".encode(errors="surrogatepass"))


def _without_docstring(body: Any) -> Any:
    first = body[0] if isinstance(body, list) and body else None
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if text else body
