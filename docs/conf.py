"""How Sphinx builds these pages: `make docs`, which needs no network."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "interp_embed"
author = "the interp_embed developers"
release = version = installed_version("interp_embed")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
nitpicky = True
# Names of other projects are not links, since that would download their inventories, and docstrings
# have arguments and attributes in single backticks too. What pages link to is checked.
nitpick_ignore_regex = [(r"py:.*", r".*")]
suppress_warnings = ["ref.python"]  # `d_sae` is an attribute of several classes

myst_heading_anchors = 4  # sections can be linked to, as on GitHub

default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
numpydoc_show_class_members = False  # autodoc lists them

html_theme = "furo"
html_title = f"interp_embed {release}"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

HERE = Path(__file__).parent
# Pages link to files of the repository, which are no pages here.
REPOSITORY = "https://github.com/interp-embed/interp_embed/blob/main/"


class CommandHelp(Directive):
    """What every command of `interp-embed` prints with `--help`."""

    def run(self) -> list[nodes.Node]:
        """Return a section per command."""
        from typer.main import get_command
        from typer.testing import CliRunner

        from interp_embed.cli.app import app

        found: list[nodes.Node] = []
        for name in get_command(app).commands:
            result = CliRunner().invoke(app, [name, "--help"], prog_name="interp-embed")
            if result.exit_code != 0:
                raise self.error(f"interp-embed {name} --help: {result.output}")
            section = nodes.section(ids=[name])
            section += nodes.title(text=name)
            section += nodes.literal_block(result.output, result.output.strip(), language="text")
            found.append(section)
        return found


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead links to files outside of these pages to the repository."""
    folder = (HERE / page).parent

    def replaced(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path = Path(os.path.normpath(folder / target))
        if image or path.is_relative_to(HERE) or not path.exists():  # Sphinx copies images
            return found[0]
        return f"[{text}]({REPOSITORY}{path.relative_to(HERE.parent).as_posix()})"

    source[0] = re.sub(r"(!?)\[([^\]]*)\]\((\.\./[^)#]+)\)", replaced, source[0])


def setup(app: Sphinx) -> None:
    """Add what is above to Sphinx."""
    app.add_directive("command-help", CommandHelp)
    app.connect("source-read", link_to_repository)
