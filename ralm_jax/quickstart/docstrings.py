"""A corpus with questions from the standard library's own documentation.

Every documented module, class, function and attribute of the Python that runs
this becomes one passage: the qualified name is its title, the docstring its
text. The docstring's first sentence is a question whose answer is the name.

Python sources are parsed, never imported, so nothing is printed, opened or changed by collecting.
Only modules that have no Python source (the built-in and compiled ones) are imported. For one
Python installation the result is always the same, in the same order.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
import importlib
import importlib.util
import inspect
from pathlib import Path
import re
import sys
import sysconfig
import types
import warnings

from ralm_jax.evaluation import metrics

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
_ABBREVIATIONS = ('e.g.', 'i.e.', 'etc.', 'vs.', 'cf.', 'approx.', 'incl.')


@dataclass(frozen=True)
class Docstring:
  """One documented object."""

  # Qualified name, such as `asyncio.events.Handle.cancel`; the passage's title and the question's
  # answer.
  name: str
  sentence: str  # First sentence of the documentation; the question.
  # The documentation, first sentence included, without its signature line, on one line and cut
  # after `max_words` words; the passage.
  text: str


def clean_docstring(docstring: str) -> str:
  """Returns a docstring dedented and without leading signature lines."""
  text = inspect.cleandoc(docstring).strip()
  while match := _SIGNATURE.match(text):
    text = text[match.end() :].strip()
  return text


def first_sentence(text: str) -> str:
  """Returns the first sentence of `text`, on one line, or the first paragraph."""
  paragraph = ' '.join(re.split(r'\n\s*\n', text, maxsplit=1)[0].split())
  for match in re.finditer(r'[.!?](?=\s|$)', paragraph):
    sentence = paragraph[: match.end()]
    if not sentence.lower().endswith(_ABBREVIATIONS):
      return sentence
  return paragraph


def collect_docstrings(
  min_words: int = 4, max_words: int = 100, max_sentence_words: int = 30
) -> list[Docstring]:
  """Returns the documentation of this Python's standard library in the order of names.

  Names that begin with an underscore are left out. Where several objects share a first sentence,
  which could not be told apart by it, only the one with the shortest name stays, so every question
  has one answer. First sentences that give the qualified name away are left out. About 5,000 stay.

  Raises FileNotFoundError where this Python has no standard library sources on disk.
  """
  found: dict[str, str] = {}
  for name, docstring in _raw_docstrings():
    found.setdefault(name, docstring)
  kept: dict[str, Docstring] = {}
  for name in sorted(found, key=lambda name: (len(name), name)):
    text = clean_docstring(found[name])
    sentence = first_sentence(text)
    words = len(re.findall(r'[A-Za-z]+', sentence))
    if not min_words <= words <= max_sentence_words or name in sentence:
      continue
    text = ' '.join(text.split()[:max_words])
    kept.setdefault(metrics.normalize_answer(sentence), Docstring(name, sentence, text))
  return sorted(kept.values(), key=lambda docstring: docstring.name)


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


def _raw_docstrings() -> Iterator[tuple[str, str]]:
  """Yields qualified names and docstrings as written, repeats included."""
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
