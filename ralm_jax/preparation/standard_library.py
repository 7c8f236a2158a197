"""The documentation of the Python that runs this, as passages.

Every documented module, class, function and attribute of its standard library is one: the
qualified name is its title, the docstring its text.

Python sources are parsed, never imported, so nothing is printed, opened or changed by collecting.
Only modules that have no Python source (the built-in and compiled ones) are imported. For one
Python installation the result is always the same, in the same order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
from pathlib import Path
import platform
import re
import sys
import sysconfig
import types
import warnings

from ralm_jax.files import atomic_files

# Test suites, demos and vendored code say little about the library; `ntpath`
# repeats `posixpath`; `readline` writes to the terminal when it is imported.
_SKIPPED = frozenset(
  'antigravity ensurepip idlelib lib2to3 ntpath pydoc_data readline test tests this turtledemo '
  'idle_test site-packages __main__ __phello__'.split()
)

# Where a module that users never name is documented. Other private modules are
# taken for the public one of the same name (`_socket` for `socket`) or left out.
_PUBLIC_MODULE = {
  '_collections_abc': 'collections.abc',
  '_elementtree': 'xml.etree.ElementTree',
  '_thread': '_thread',
  'posix': 'os',
  'posixpath': 'os.path',
}

# 'name(arguments) -> result' at the start of compiled code's docstrings, with
# whatever dash or full stop parts it from the description.
_SIGNATURE = re.compile(
  r'^[A-Za-z_][\w.]*\([^()]*(?:\([^()]*\)[^()]*)*\)'
  r'(?:[ \t]*->[ \t]*[^\n.:]*?(?=\.|:|--|\n|$))?'
  r'[ \t]*(?:--|[.:-])?[ \t]*(?:\n+|(?=[A-Z])|$)'
)


def write_passages(folder: str) -> str:
  """Writes the documentation of this Python to a jsonl file below `folder`, once; its path.

  A text that several objects share, as aliases and inherited methods do, is that of the shortest
  name.

  Raises FileNotFoundError where this Python has no standard library sources on disk.
  """
  library = sysconfig.get_path('stdlib')
  digest = hashlib.sha256(f'{sys.version} {library}'.encode()).hexdigest()[:8]
  path = os.path.join(folder, f'python-{platform.python_version()}-{digest}.jsonl')
  if os.path.exists(path):
    return path
  os.makedirs(folder, exist_ok=True)
  named = dict(reversed(list(docstrings())))  # The first of a name stays.
  texts = {name: clean_docstring(docstring) for name, docstring in named.items()}
  shortest = sorted(texts, key=lambda name: (len(name), name), reverse=True)
  kept = {texts[name]: name for name in shortest if texts[name]}
  rows = ({'id': name, 'title': name, 'text': texts[name]} for name in sorted(kept.values()))
  atomic_files.write(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  return path


def clean_docstring(docstring: str) -> str:
  """Returns a docstring dedented and without leading signature lines."""
  text = inspect.cleandoc(docstring).strip()
  while match := _SIGNATURE.match(text):
    text = text[match.end() :].strip()
  return text


def _public_module(module: str) -> str | None:
  """Returns the name users know a module by, or None for a private one."""
  top, _, rest = module.partition('.')
  if top in _PUBLIC_MODULE:
    top = _PUBLIC_MODULE[top]
  elif top.startswith('_'):
    if top[1:] not in sys.stdlib_module_names:
      return None
    top = top[1:]
  if any(part.startswith('_') for part in rest.split('.') if rest):
    return None
  return f'{top}.{rest}' if rest else top


def docstrings() -> Iterator[tuple[str, str]]:
  """Yields qualified names and docstrings as written, repeats included.

  Raises FileNotFoundError where this Python has no standard library sources on disk.
  """
  library = Path(sysconfig.get_path('stdlib'))
  compiled = []
  parsed = 0
  for top in sorted(sys.stdlib_module_names):
    if top in _SKIPPED or 'test' in top.split('_'):
      continue
    sources = _module_sources(library, top)
    if not sources:
      compiled.append(top)
    for module, path in sources:
      # `_pydecimal` and its like would only repeat the compiled module.
      if public := _public_module(module):
        parsed += 1
        yield from _parse_module(public, path)
  if not parsed:
    raise FileNotFoundError(
      f'no Python sources under {library}: this Python was installed without '
      'its standard library sources; use one that has them'
    )
  for module in compiled:
    if public := _public_module(module):
      yield from _inspect_module(public, module)


def _module_sources(library: Path, top: str) -> list[tuple[str, Path]]:
  """Returns (module, file) of a top-level module and all modules in it."""
  single = library / f'{top}.py'
  if single.is_file():
    return [(top, single)]
  sources = []
  for path in sorted((library / top).rglob('*.py')):
    parts = path.relative_to(library).with_suffix('').parts
    if any(part in _SKIPPED or part.startswith('test_') for part in parts):
      continue
    if parts[-1] == '__init__':
      parts = parts[:-1]
    sources.append(('.'.join(parts), path))
  return sources


def _parse_module(module: str, path: Path) -> Iterator[tuple[str, str]]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      tree = ast.parse(path.read_bytes(), filename=str(path))
  except (SyntaxError, ValueError, OSError):
    return  # Templates and files of another Python's syntax.
  if docstring := ast.get_docstring(tree, clean=False):
    yield module, docstring
  yield from _parse_body(module, tree.body)


def _parse_body(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
  for node in body:
    if isinstance(node, (ast.If, ast.Try)):
      # Definitions that depend on the platform, or on a compiled module.
      branches = [node.body, node.orelse]
      branches += [handler.body for handler in getattr(node, 'handlers', ())]
      for branch in branches:
        yield from _parse_body(prefix, branch)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      if node.name.startswith('_'):
        continue
      name = f'{prefix}.{node.name}'
      if docstring := ast.get_docstring(node, clean=False):
        yield name, docstring
      if isinstance(node, ast.ClassDef):
        yield from _parse_body(name, node.body)


def _inspect_module(public: str, module: str) -> Iterator[tuple[str, str]]:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      if importlib.util.find_spec(module) is None:
        return  # Of another platform.
      imported = importlib.import_module(module)
  except Exception:  # A compiled module may lack its shared library.
    return
  if isinstance(imported.__doc__, str):
    yield public, imported.__doc__
  yield from _inspect_members(public, vars(imported), module)


def _inspect_members(
  prefix: str, members: dict[str, object], module: str
) -> Iterator[tuple[str, str]]:
  kinds = (
    type,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
  )
  seen = set()
  for name in sorted(members):
    value = members[name]
    if isinstance(value, (staticmethod, classmethod)):
      value = value.__func__
    if name.startswith('_') or not isinstance(value, kinds):
      continue
    # A class under a second name, such as `socket.SocketType`.
    if (isinstance(value, type) and value.__name__ != name) or id(value) in seen:
      continue
    seen.add(id(value))
    if isinstance(value.__doc__, str):
      yield f'{prefix}.{name}', value.__doc__
    if isinstance(value, type) and prefix.count('.') < 4:
      yield from _inspect_members(f'{prefix}.{name}', dict(vars(value)), module)
