"""The worked examples of CONTRIBUTING.md, as modules of a user's own."""

from __future__ import annotations

import re
import sys
import types

from tests import tiny

_BLOCK = re.compile(r'^```python\n# (\w+)\.py.*?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def texts() -> dict[str, str]:
  """The examples' code by module name; blocks of one name belong together."""
  found: dict[str, str] = {}
  for name, code in _BLOCK.findall((tiny.ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')):
    found[name] = code + found.get(name, '')
  return found


def run(name: str) -> types.ModuleType:
  """Runs one as if it had been imported, which registers what it has."""
  module = types.ModuleType(name)
  sys.modules[name] = module  # Where dataclasses look their own module up.
  try:
    exec(compile(texts()[name], f'CONTRIBUTING.md: {name}', 'exec'), module.__dict__)
  finally:
    del sys.modules[name]
  return module
