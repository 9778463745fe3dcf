"""The site, as Sphinx builds it: `tools/docs`."""

import importlib.util
import re
from typing import Any

import biofx

project = "biofx"
author = "biofx contributors"
copyright = "biofx contributors"
release = version = biofx.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]
nitpicky = False
smartquotes = False  # "auto" in a docstring is a value, to be typed as it stands

html_theme = "furo"
html_title = f"biofx {release}"
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b63a5", "color-brand-content": "#0b63a5"},
    "dark_css_variables": {"color-brand-primary": "#6cb6f2", "color-brand-content": "#6cb6f2"},
}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # what a notebook shows is what it does now
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# Their callbacks are described without them.
autodoc_mock_imports = [
    name for name in ("lightning", "transformers") if importlib.util.find_spec(name) is None
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]


def as_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are Markdown's: `name` is code, |w| no substitution, w* no emphasis; *w* is."""
    for place, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`)", line)
        for i, part in enumerate(parts):
            if i % 2 == 0:
                split = re.split(r"((?<![\w*])\*\w[^*|]*(?<=\w)\*(?![\w*]))", part)
                split[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", text) for text in split[::2]]
                parts[i] = "".join(split)
            elif not part.startswith("``"):
                joined = parts[i + 1][:1].isalnum()  # `torch.compile`d
                parts[i] = f"`{part}`" + ("\\ " if joined else "")
        lines[place] = "".join(parts)


def setup(app: Any) -> None:
    # before napoleon writes field lists, whose asterisks are markup
    app.connect("autodoc-process-docstring", as_text, priority=100)
