"""No file of the library imports itself through others.

Imports inside functions and for types alone count. What packages may import of each other is held by
the contracts in pyproject.toml, which `lint-imports` checks; here it is files, and the ``__init__`` of
a package is one of them.
"""

from __future__ import annotations

import sys
import tomllib
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = next(p for p in Path(__file__).parents if (p / "pyproject.toml").is_file())


def circle(package, ignored=()):
    """Files that import each other in a circle, the first one again at the end; none if there are none."""
    graph = grimp.build_graph(package, cache_dir=None)
    imported = {
        module: {
            other
            for other in graph.find_modules_directly_imported_by(module)
            if not any(fnmatch(f"{module} -> {other}", pattern) for pattern in ignored)
        }
        for module in graph.modules
    }
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_file_imports_itself_through_others():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (acyclic,) = (c for c in linter["contracts"] if c["type"] == "acyclic_siblings")
    assert circle("interp_embed", acyclic.get("ignore_imports", ())) == []


def test_late_imports_and_those_for_types_are_noticed(tmp_path, monkeypatch):
    package = tmp_path / "circular_example"
    package.mkdir()
    (package / "__init__.py").write_text("from circular_example.a import f\n")
    (package / "a.py").write_text("def f():\n    from circular_example import b\n    return b\n")
    (package / "b.py").write_text("from typing import TYPE_CHECKING\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert circle("circular_example") == []
    (package / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from circular_example import f\n"
    )
    names = [name.removeprefix("circular_example") for name in circle("circular_example")]
    assert sorted(names[:-1]) == ["", ".a", ".b"]
    assert names[0] == names[-1]
    assert "circular_example" not in sys.modules
