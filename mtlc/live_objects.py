"""Gives objects that a Python caller hands over a reference, as a job would write it, and describes what they hold.

What can be imported is called ``module:name``, so that a checkpoint says it to people and another process finds it
again. Anything else (an instance, a lambda, a class inside a function) is ``live:Name-hash``: its type and what it
holds, hashed. Objects that hold the same have the same reference, and what was computed with one stands for the other.
"""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

LIVE = "live"
"""What stands for the module in the reference of an object that cannot be imported."""
_DEEPEST = 24
_PLAIN = (type(None), bool, int, float, complex, str, bytes)

_objects: dict[str, Any] = {}


def reference(value: Any) -> str:
    """The ``module:name`` under which `value` is found in this process. It stays findable until the process ends."""
    name, module = getattr(value, "__qualname__", None), getattr(value, "__module__", None)
    if isinstance(name, str) and isinstance(module, str) and getattr(sys.modules.get(module), name, None) is value:
        return f"{module}:{name}"
    kind = name if isinstance(name, str) else type(value).__name__
    short = "".join(c for c in kind.rpartition(".")[2] if c.isalnum() or c == "_") or "object"
    made = f"{LIVE}:{short}-{content_hash(value)[:12]}"
    _objects[made] = value
    return made


def is_live(text: str) -> bool:
    """Whether a reference is one of an object that cannot be imported."""
    return text.partition(":")[0] == LIVE


def find(text: str) -> Any:
    """The object of a live reference. Raises `KeyError` where this process was given none."""
    return _objects[text]


def content_hash(value: Any) -> str:
    """SHA-256 of the type of `value` and of all that it holds, the same in every process.

    Of functions the code counts, their defaults and what they close over; of tensors and arrays the bytes; of other
    objects the attributes. What none of this tells, such as an open file, makes another hash each time.
    """
    digest = hashlib.sha256()
    _put(digest, value, {}, 0)
    return digest.hexdigest()


def _put(digest: Any, value: Any, seen: dict[int, tuple[int, Any]], depth: int) -> None:
    kind = type(value)
    digest.update(f"{kind.__module__}.{kind.__qualname__};".encode())
    if isinstance(value, _PLAIN):
        digest.update(f"{value!r};".encode())
        return
    if id(value) in seen:  # a circle, or one object in two places
        digest.update(f"again {seen[id(value)][0]};".encode())
        return
    seen[id(value)] = len(seen), value  # kept alive: the next object must not get its id
    if depth > _DEEPEST:
        digest.update(uuid.uuid4().bytes)
        return
    for part in _parts(value, digest):
        _put(digest, part, seen, depth + 1)


def _parts(value: Any, digest: Any) -> list[Any]:
    """What `value` holds; what of it are bytes goes into the digest at once."""
    if isinstance(value, type):
        digest.update(f"{value.__module__}.{value.__qualname__};".encode())
        return []
    if isinstance(value, Mapping):
        return [len(value), *(part for pair in value.items() for part in pair)]
    if isinstance(value, list | tuple):
        return [len(value), *value]
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__module__, value.__code__, value.__defaults__, value.__kwdefaults__, closed]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_varnames, [c for c in value.co_consts if c is not ...]]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    data = _bytes(value)
    if data is not None:
        digest.update(data)
        return []
    return _attributes(value)


def _bytes(value: Any) -> bytes | None:
    """A tensor or an array as bytes, with its type and shape in front; this floor imports neither torch nor numpy."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor) and not value.is_meta:
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{tuple(value.shape)}".encode() + bytes(flat)
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}".encode() + bytes(value.tobytes())
    return None


def _attributes(value: Any) -> list[Any]:
    """What an object pickles to, a level deep, and its attributes; nothing that repeats where it has neither."""
    if isinstance(value, BuiltinFunctionType):
        return [value.__module__, value.__qualname__]
    held = getattr(value, "__dict__", None)
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(value, name)]
    attributes = [dict(held or {}), *(getattr(value, name) for name in slots)]
    try:
        reduced = value.__reduce_ex__(2)  # what is written in C keeps its values where only this tells them
    except Exception:  # what cannot be pickled says so as its class likes
        return attributes if held or slots else [uuid.uuid4().hex]
    if isinstance(reduced, str):
        return [reduced, *attributes]
    made, arguments, *state = reduced
    return [made, arguments, *(list(one) if isinstance(one, Iterator) else one for one in state), *attributes]
