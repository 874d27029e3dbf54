"""How the documentation is built: ``sphinx-build -W --keep-going docs docs/_build/html``.

Pages with ``{code-cell}`` and the notebooks are executed, on the sandbox, while the site is
built; an error in one of them is an error of the build. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import sphinx_autosummary_accessors

import clearsky_xr._accessor  # noqa: F401  gives Datasets their .clearsky, which the reference describes

HERE = Path(__file__).parent

# The kernels inherit this environment: the sandbox, nobody's key, and no bars, which say
# nothing on paper.
os.environ.pop("CLEARSKY_API_KEY", None)
os.environ["CLEARSKY_BASE_URL"] = "sandbox"
os.environ["TQDM_DISABLE"] = "1"
# ``clearsky-xr`` in a cell is the one of this environment.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# Sphinx reads below its own folder only. A copy rather than a link: what a notebook leaves
# behind, such as a store, goes with the next build.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(
    HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*", "*.zarr*")
)

project = "clearsky_xr"
author = "the clearsky_xr developers"
project_copyright = author
version = release = version_of("clearsky-xr")
html_title = "clearsky_xr"

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_autosummary_accessors",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates", sphinx_autosummary_accessors.templates_path]
# Names in single backticks are Python's.
default_role = "py:obj"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_execution_timeout = 120
nb_merge_streams = True

autosummary_generate = True
# Names that differ in case only would be one file on some disks.
autosummary_filename_map = {
    f"clearsky_xr.{name}": f"clearsky_xr.{name}-function"
    for name in ("availability", "budget", "plan", "cluster.status", "sandbox.faults.together")
}
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_sidebars = {name: [] for name in ("index", "start", "coming-from")}  # nothing below them
html_css_files = ["clearsky.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "clearsky_xr"},
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Pages that have their place; every other one of this folder belongs under the hood.
_PLACED = {"index", "start", "examples", "coming-from", "hood", "plan", "store", "errors"}


def _hood(app: Any, docname: str, source: list[str]) -> None:  # noqa: ARG001  # as Sphinx calls it
    if docname == "hood":
        pages = sorted({path.stem for path in HERE.glob("*.md")} - _PLACED)
        source[0] = source[0].replace("(every other page)", "\n".join(pages))


def setup(app: Any) -> None:
    """Connect what this file does with what Sphinx does."""
    app.connect("source-read", _hood)
    # The list may have grown though the page that holds it has not changed.
    app.connect("env-get-outdated", lambda *_: ["hood"])
