"""Packages import their public names when they are first used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["interp_embed", "interp_embed.llm", "interp_embed.sae", "interp_embed.testing"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_listed(package: str) -> None:
    module = import_module(package)
    public = {name for name in module.__all__ if not name.startswith("_")}
    assert set(dir(module)) == public
    for name in public:
        found = getattr(module, name)
        assert found.__name__ == name
        assert found.__module__.startswith("interp_embed.")
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        module.nothing_of_this_name  # noqa: B018


def test_importing_a_package_imports_none_of_its_modules() -> None:
    code = (
        f"import sys\nfor name in {PACKAGES}: __import__(name)\n"
        "print(sorted(m for m in sys.modules if m.startswith('interp_embed')))\n"
        "print(sorted({'numpy', 'zarr', 'dask', 'torch', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert found.splitlines() == [str(PACKAGES), "[]"]


def test_a_missing_extra_is_what_the_error_names() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\nimport interp_embed.llm\n"
        "try: interp_embed.llm.LLMClient\nexcept ImportError as error: print(error.name)"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert found == "openai\n"
