"""Settings of the site: sphinx-build docs build/docs"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dreamer  # noqa: E402

project = "dreamer"
version = release = dreamer.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.extension"]
exclude_patterns = ["extension"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "dreamer"
html_copy_source = html_show_sphinx = html_show_copyright = smartquotes = False
pygments_dark_style = "a11y-high-contrast-dark"
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
# Types of other libraries and of modules without a page: nothing is fetched when the site is built.
nitpick_ignore_regex = [("py:.*", r".*")]
