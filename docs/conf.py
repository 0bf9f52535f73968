"""The documentation site: `nox -s docs` builds it, from this folder and the docstrings, without the network."""

import re
from importlib.metadata import version as version_of
from typing import Any

import pydata_sphinx_theme  # noqa: F401  # told early where it is missing
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

project = "daskgmm"
author = "The daskgmm developers"
copyright = f"2026, {author}"
version = release = version_of("daskgmm")

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.githubpages",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "numpydoc",
]
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store", "**/GALLERY_HEADER.rst"]
templates_path = ["_templates"]
nitpicky = False  # types in docstrings are words for readers, not all of them names
default_role = "py:obj"  # as docstrings use single backticks

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections have them, in words
autodoc_member_order = "groupwise"
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False  # the template lists them
numpydoc_xref_param_type = False

# Each script runs while the site is built, and its page has what it prints. DASKGMM_EXAMPLES says how large.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 3600,
    "show_signature": False,
    "write_computation_times": False,
    "backreferences_dir": None,
}

plot_formats = [("png", 144)]
plot_html_show_formats = plot_html_show_source_link = False

html_theme = "pydata_sphinx_theme"
html_title = "daskgmm"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "github_url": "https://github.com/daskgmm/daskgmm",
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 1,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_show_sourcelink = False
html_context = {"default_mode": "auto"}


def ours_alone(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what classes inherit from others: scikit-learn's own pages have it."""
    module = getattr(member, "__module__", None)
    return True if module is not None and not module.startswith("daskgmm") else None


def formula(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """A formula as MathML, which browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    # Chromium shows no space after the name of a function.
    text = tex2mathml(node.astext(), as_block=block).replace(
        "<mo>&ApplyFunction;</mo>", '<mspace width="0.17em"/>'
    )
    writer.body.append(f'<div class="formula">{text}</div>' if block else text)
    raise nodes.SkipNode


def unmarked(app: Sphinx, context: Any, lines: list[str]) -> None:
    """Help of commands is no markup: an underscore at the end of a name is a letter, and no link."""
    lines[:] = [re.sub(r"(?<=\w)_(?!\w)", r"\_", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
    app.connect("autodoc-skip-member", ours_alone)
    app.connect("sphinx-click-process-options", unmarked)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
