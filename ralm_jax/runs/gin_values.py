"""Values that gin binds: paths from home, and each as the type of what it is bound to says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import os
import re
import typing
from typing import Any

from gin import config as gin_config

from ralm_jax.losses import option_types


def expand_home() -> None:
  """Makes `~/run` the path that a shell would; wherever it stands, as no other text begins so."""

  def expanded(value: Any) -> Any:
    if isinstance(value, str):
      return os.path.expanduser(value) if value.split('/', 1)[0] == '~' else value
    if isinstance(value, dict):
      return {key: expanded(item) for key, item in value.items()}
    return type(value)(map(expanded, value)) if type(value) in (list, tuple) else value

  for parameters in gin_config._CONFIG.values():
    for name, value in parameters.items():
      parameters[name] = expanded(value)


def check() -> None:
  """Raises ValueError, by the name of the macro, for a value that cannot be meant."""
  for (_, selector), parameters in gin_config._CONFIG.items():
    if selector.startswith('gin.'):
      continue
    configurable = gin_config._REGISTRY.get_match(selector)
    hints = option_types.hints(_plain(configurable.wrapped))
    for name, value in parameters.items():
      _check(value, hints.get(name, Any), f'{selector.split(".")[-1]}.{name}')


def _plain(wrapped: Callable[..., Any]) -> Any:
  """A configurable as it was before gin."""
  return getattr(wrapped, '__wrapped__', wrapped)


def _check(value: Any, hint: Any, name: str) -> None:
  while isinstance(value, gin_config.ConfigurableReference):
    if value.config_key[1] != 'gin.macro':
      return  # what a function returns, or a constant
    name = '/'.join(value.scopes)
    value = gin_config._CONFIG.get((name, 'gin.macro'), {}).get('value')
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin in (dict, Mapping) and isinstance(value, Mapping):
    for key, item in value.items():
      _check(item, inner[1], f'{name}[{key!r}]')
  elif origin in (list, tuple, Sequence) and isinstance(value, (list, tuple)):
    for item in value:
      _check(item, inner[0], name)
  elif words := option_types.expected(value, hint):
    quoted = ''
    if words.startswith('a text') and isinstance(value, (int, float)) and 'number' not in words:
      quoted = f' (a number is one in quotes: --gin.{name}="\'{value}\'")'
    raise ValueError(f'{name} must be {words}{quoted}, not {value!r}.')


# What a run may go on with otherwise, unsaid: it says what is written and when, or what else is
# compared by content.
_FREE = re.compile(
  r'MODEL_DIR|TRAIN_STEPS|(EVAL|STATS|CHECKPOINT)_\w+|RETRIEVAL_LOOKAHEAD|METRICS|INITIAL_\w+|SHOTS\w*'
  r'|(READER|RETRIEVER)_VOCABULARY|TRAIN_QUESTIONS|RECORD_FORMAT|ON_ERROR|BATCH_SIZE|RANDOM_SEED'
  r'|CORPUS|INDEX|RETRIEVAL_ADDRESS|NUM_PARTITIONS|PARAMETER_PARTITIONING_DIMS|REMAT_POLICY|SIZE_\w+'
  r'|.*(CheckpointConfig\.\w+|max_skipped_steps)'
)


def changes(before: str, now: str) -> list[str]:
  """What two configurations, as gin writes them, say otherwise of how a run learns."""
  old, new = map(_statements, (before, now))
  return [
    f'{name} {old.get(name, "unset")} is now {new.get(name, "unset")}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not _FREE.fullmatch(name)
  ]


def _statements(text: str) -> dict[str, str]:
  found: dict[str, str] = {}
  name = ''
  for line in text.splitlines():
    match = re.match(r'([\w./]+) = (.*)', line)
    if match:
      name, found[match[1]] = match[1], match[2].rstrip('\\').strip()
    elif line[:1] == ' ' and name:
      found[name] += line.strip()
  return found
