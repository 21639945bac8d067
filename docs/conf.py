"""Sphinx configuration of the documentation site; tools/make_site.py gathers the pages and calls Sphinx."""

project = "LLARVA Workbench"
author = copyright = "LLARVA Workbench developers"

extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["_build", "jupyter_execute"]

# Pages show the outputs that are saved in the notebooks.
nb_execution_mode = "off"
# Widgets need a running kernel; without this their pages would ask another host for a script.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_code_prompt_show = "Code"
nb_code_prompt_hide = "Hide code"
nb_mime_priority_overrides = [("html", "text/html", 5)]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
# Headings of functions sit below the notebook's own headings, whichever level those have.
suppress_warnings = ["myst.header"]

html_theme = "sphinx_book_theme"
html_title = "LLARVA Workbench"
html_theme_options = {"navbar_persistent": [], "use_download_button": True, "show_toc_level": 2}
html_static_path = ["_static"]
html_js_files = ["plotly.min.js", "figures.js"]
html_css_files = ["site.css"]
