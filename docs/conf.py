"""The site, as Sphinx builds it: `tools/docs`."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.transforms import SphinxTransform

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
pygments_dark_style = "github-dark"  # the theme's own underlines names of modules, as if links
html_title = f"biofx {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b63a5",
        "color-brand-content": "#0b63a5",
        "code-font-size": "75%",  # lines of code fit
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb6f2",
        "color-brand-content": "#6cb6f2",
        "mystnb-source-border-color": "#30363d",
    },
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


class DarkImages(SphinxTransform):
    """Beside name.png, name-dark.png is shown on a dark page in its stead."""

    default_priority = 500  # before images are collected

    def apply(self, **_: Any) -> None:
        folder = Path(self.env.doc2path(self.env.docname)).parent
        for image in list(self.document.findall(nodes.image)):
            light = Path(image["uri"])
            dark = light.with_stem(f"{light.stem}-dark")
            if "://" not in image["uri"] and (folder / dark).exists():
                other = image.deepcopy()
                other["uri"] = dark.as_posix()
                image["classes"].append("only-light")  # classes of the theme
                other["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, other)


def setup(app: Any) -> None:
    app.add_transform(DarkImages)
    # before napoleon writes field lists, whose asterisks are markup
    app.connect("autodoc-process-docstring", as_text, priority=100)
