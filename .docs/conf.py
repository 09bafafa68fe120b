"""The settings of the site that ``make docs`` builds; see ``build.py`` beside this."""

from importlib.metadata import version as installed

project = "fm_storage"
version = release = installed("fm-storage")
project_copyright = "the fm_storage contributors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
# Styles of Pygments itself: the theme's own are looked for among the plug-ins of all
# packages that are installed, and one of the bench's peers has a broken one.
pygments_style = "default"
pygments_dark_style = "monokai"
html_title = f"fm_storage {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

# Anchors as code hosts make them, so that one link works there and here.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_use_rtype = False
