"""gin the way T5X users type it, with typos caught.

`--gin_file`, `--gin_bindings`, `--gin_search_paths` and `--gin.NAME=VALUE`.
Later files and bindings override earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import difflib
import importlib.resources
import inspect
import logging
import os
import re
from typing import Any

import gin
from gin import config as gin_config, config_parser

from ralm_jax.checkpoints import registering
from ralm_jax.files import atomic_files
from ralm_jax.runs import former_names, gin_values

_PREFIX = '--gin.'


def split_gin_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes `--gin.NAME=VALUE` out of the arguments, as gin bindings; ValueError without a value.

  A VALUE that is no gin literal (`/tmp/run`) is taken as a string: nothing is quoted twice.
  """
  rest, bindings = [], []
  for argument in argv:
    if not argument.startswith(_PREFIX):
      rest.append(argument)
      continue
    name, separator, value = argument.removeprefix(_PREFIX).partition('=')
    if not separator:
      raise ValueError(f'{argument} needs a value: {argument}=VALUE.')
    bindings.append(f'{name.strip()} = {_literal(value.strip())}')
  return rest, bindings


class _AnyReference(config_parser.ParserDelegate):
  """Accepts references to what is registered only later."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return scoped_configurable_name

  def macro(self, macro_name):
    return macro_name


def _literal(value: str) -> str:
  """The value as gin reads it; quoted if gin cannot read all of it."""
  try:
    parsed = list(config_parser.ConfigParser(f'x = {value}', _AnyReference()))
    return value if len(parsed) == 1 else repr(value)
  except Exception:
    return repr(value)


def parse(
  gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ('.',)
) -> None:
  """Parses the configuration; ValueError, with the nearest name, for what is unknown or bad."""
  gin.clear_config()
  registering.make_importable()
  # Installed configurations are found by their path in the package. gin's own
  # reader for them fails on folders without `__init__.py`.
  root = os.path.dirname(str(importlib.resources.files('ralm_jax.gin_configs')))
  gin_config._LOCATION_PREFIXES[:] = ['', *search_paths, root]
  gin_config._FILE_READERS[:] = [(open, os.path.isfile)]
  for file in gin_files:
    if not any(os.path.exists(os.path.join(path, file)) for path in gin_config._LOCATION_PREFIXES):
      raise FileNotFoundError(
        f'gin file {file} is in none of {list(search_paths)} nor installed '
        f'with the package (gin_configs/…).{former_names.hint(file)}'
      )
  _check_order(gin_files)
  try:
    gin.parse_config_files_and_bindings(list(gin_files), list(bindings), finalize_config=False)
  except UnicodeDecodeError as e:
    line = e.object.count(b'\n', 0, e.start) + 1
    raise ValueError(
      f'One of {", ".join(gin_files)} is not UTF-8 text (byte {e.object[e.start]:#x}, line {line}).'
    ) from e
  except Exception as e:
    remedy = former_names.hint(str(e)) or _nearest_in(str(e))
    raise ValueError(f'{_first_lines(e)}{remedy}') from e
  _check_macros()
  gin_values.expand_home()
  gin_values.check()


def _check_order(gin_files: Sequence[str]) -> None:
  """Raises ValueError for a model file that would undo what a recipe decides."""
  recipe = None
  for file in gin_files:
    folder, name = os.path.split(file)
    if (
      os.path.basename(folder) == 'recipes'
      and name.removesuffix('.gin') in former_names.RECIPES_OF_ANY_SIZE
    ):
      recipe = file
    elif os.path.basename(folder) == 'models' and recipe is not None:
      raise ValueError(
        f'{file} would undo what {recipe} decides; give the model first: '
        f'--gin_file={file} --gin_file={recipe}.'
      )


def _check_macros() -> None:
  """Raises ValueError for macros that are required, undefined or unused."""
  if {'MODEL', 'SIZE_NUM_PARTITIONS'} <= set(_macros_used()) - _macros_bound():
    raise ValueError(
      'The configuration has no model: give --gin_file=gin_configs/models/SIZE.gin '
      'before the recipe.'
    )
  # A typo first: it is also why another macro is left open.
  unused = sorted(_macros_bound() - set(_macros_used()))
  for name in unused:
    if name.startswith('SIZE_'):
      continue  # What a model file tells recipes; a run file alone needs none of it.
    near = difflib.get_close_matches(name, sorted(set(_macros_used())), n=1)
    hint = f' Did you mean {near[0]}?' if near else ''
    raise ValueError(
      f'gin sets {name}, which no configuration uses.{hint} Names in use: '
      f'{", ".join(sorted(set(_macros_used()))) or "none"}.'
    )
  required = sorted(
    scope
    for (scope, selector), bound in gin_config._CONFIG.items()
    if selector == 'gin.macro' and _is_required(bound.get('value'))
  )
  undefined = sorted(set(_macros_used()) - _macros_bound() - {''})
  if required or undefined:
    names = ', '.join([*required, *undefined])
    raise ValueError(
      f'The configuration leaves {names} open; set each, e.g. '
      f'--gin.{[*required, *undefined][0]}=VALUE.'
    )


def _is_required(value: Any) -> bool:
  """Whether a macro is bound to `%gin.REQUIRED`, a reference to a constant."""
  return value is gin.REQUIRED or (
    isinstance(value, gin_config.ConfigurableReference)
    and value.config_key == ('gin.REQUIRED', 'gin.constant')
  )


def _first_lines(error: Exception) -> str:
  return ' '.join(line.strip() for line in str(error).splitlines()[:3])


def _nearest_in(message: str) -> str:
  """A hint for "No configurable matching 'x'" and unknown parameters."""
  match = re.search(r"No configurable matching '([^']+)'", message)
  if match:
    known = {key[1] for key in gin_config._CONFIG} | set(gin_config._REGISTRY._selector_map)
    wanted = match[1].split('.')[-1]
    near = difflib.get_close_matches(wanted, sorted({name.split('.')[-1] for name in known}), n=1)
    return f' Did you mean {near[0]}?' if near else ''
  return _nearest_parameter(message)


def _nearest_parameter(message: str) -> str:
  """For "Configurable 'f' doesn't have a parameter named 'x'"."""
  match = re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message)
  if not match:
    return ''
  try:
    configurable = gin_config._REGISTRY.get_match(match[1])
    names = list(inspect.signature(configurable.wrapped).parameters)
  except Exception:
    return ''
  near = difflib.get_close_matches(match[2], names, n=1)
  return f' Did you mean {near[0]!r}?' if near else f' It has {names}.'


def _macros_bound() -> set[str]:
  return {scope for scope, selector in gin_config._CONFIG if selector == 'gin.macro'}


def _macros_used() -> Iterator[str]:
  """Names of macros that any binding refers to."""

  def references(value: Any) -> Iterator[str]:
    if isinstance(value, gin_config.ConfigurableReference):
      if value.selector == 'gin.macro' or value.config_key[1] == 'gin.macro':
        yield '/'.join(value.scopes)
    elif isinstance(value, dict):
      for key, item in value.items():
        yield from references(key)
        yield from references(item)
    elif isinstance(value, (list, tuple)):
      for item in value:
        yield from references(item)

  for parameters in gin_config._CONFIG.values():
    for value in parameters.values():
      yield from references(value)


def import_tensorflow() -> None:
  """Imports what configurations refer to, some of which takes seconds."""
  from ralm_jax.data import pipeline  # noqa: F401


def operative() -> str:
  """What of the configuration has been used so far; '' without one."""
  return gin.operative_config_str()


def tell_changes(directory: str) -> None:
  """One line of what a run goes on with otherwise than its `config.gin` says."""
  try:
    with open(os.path.join(directory, 'config.gin'), encoding='utf-8') as file:
      before = file.read()
  except FileNotFoundError:
    return
  changes = gin_values.changes(before, gin.config_str())
  if before.strip() and gin.config_str().strip() and changes:
    logging.warning('%s goes on otherwise than it began: %s.', directory, '; '.join(changes))


def save_config(directory: str) -> None:
  """Writes `config.gin` and, once run, `operative_config.gin`."""
  os.makedirs(directory, exist_ok=True)
  for prefix, text in (('', gin.config_str()), ('operative_', gin.operative_config_str())):
    atomic_files.write(os.path.join(directory, f'{prefix}config.gin'), text)
