"""The public names, their parameters and their defaults stay as they are unless somebody means it.

`fixtures/signatures.txt` is what they are. After a change that is meant, write it again with
``python -m tests.test_signatures`` and look at the difference.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module

from tests.support.paths import FIXTURES

PUBLIC = (
    "interp_embed",
    "interp_embed.analysis",
    "interp_embed.data",
    "interp_embed.encode",
    "interp_embed.errors",
    "interp_embed.interop",
    "interp_embed.labels",
    "interp_embed.llm",
    "interp_embed.sae",
    "interp_embed.testing",
)
RECORDED = FIXTURES / "signatures.txt"


def parameters(function):
    """Names, kinds and defaults; annotations say more than callers depend on."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    shown = str(inspect.Signature(bare))
    return re.sub(r" at 0x[0-9a-f]+", "", shown)


def members(cls):
    """Public methods and properties of a class, inherited ones of this library included."""
    for name in sorted(dir(cls)):
        if name.startswith("_") and name not in ("__init__", "__getitem__", "__iter__", "__len__"):
            continue
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if not owner.__module__.startswith("interp_embed"):
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            yield f"{name} (property{'' if value.fset is None else ', can be set'})"
        elif isinstance(value, classmethod | staticmethod):
            yield f"{type(value).__name__} {name}{parameters(value.__func__)}"
        elif inspect.iscoroutinefunction(value):
            yield f"async {name}{parameters(value)}"
        elif callable(value):
            yield f"{name}{parameters(value)}"
        else:
            yield f"{name}"


def described():
    """Every public name, a line each, members below their class."""
    lines = []
    for module_name in PUBLIC:
        module = import_module(module_name)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            path = f"{module_name}.{name}"
            if inspect.isclass(value):
                bases = [b.__name__ for b in value.__mro__[1:] if b.__module__ == "builtins"]
                lines.append(f"{path} ({bases[0]})")
                lines.extend(f"    {member}" for member in members(value))
            elif callable(value):
                lines.append(f"{path}{parameters(value)}")
            else:
                lines.append(path)
    return "\n".join(lines) + "\n"


def test_public_signatures_are_those_that_were_recorded():
    assert described() == RECORDED.read_text()


if __name__ == "__main__":
    RECORDED.write_text(described())
