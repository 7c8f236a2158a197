"""Sphinx: `sphinx-build -W docs docs/_build`."""

project = 'ralm_jax'
copyright = '2026, the ralm_jax authors'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_heading_anchors = 3
autodoc_typehints = 'none'
html_theme = 'alabaster'
exclude_patterns = ['_build']
suppress_warnings = ['myst.xref_missing']  # README's and CONTRIBUTING's links
