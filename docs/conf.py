"""How Sphinx builds these pages: `make docs`, which needs no network."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "interp_embed"
author = "the interp_embed developers"
release = version = installed_version("interp_embed")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
suppress_warnings: list[str] = []
nitpicky = True
# Other projects are not linked to, since that would download their inventories, and docstrings name
# arguments and attributes in single backticks. So only the roles that pages write out are checked.
nitpick_ignore_regex = [(r"py:(class|obj)", r".*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # sections can be linked to, as on GitHub

default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"interp_embed {release}"
html_show_sphinx = False
html_copy_source = False
