"""Chat templates, rendered as `transformers` renders them, in jinja2's sandbox.

A template comes with a model's weights, so it is foreign code: it can call nothing but what stands
here, and reach nothing by attributes. Nothing keeps it from running for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import datetime
import functools
import json
from typing import Any

Messages = Sequence[Mapping[str, Any]]  # Each with `role` and `content`.


class ChatTemplateError(ValueError):
  """A template that cannot be rendered; `refused` where it says so itself (raise_exception)."""

  def __init__(self, message: str, refused: bool = False):
    super().__init__(message)
    self.refused = refused


def render(
  source: str,
  messages: Messages,
  variables: Mapping[str, Any] = {},  # noqa: B006 (read only)
  *,
  add_generation_prompt: bool = False,
  where: object = 'tokenizer',
) -> str:
  """The text of a conversation; `variables` are what else the template may read (`bos_token`).

  Raises:
    ChatTemplateError: the template is none, fails, or refuses these messages, in one line that
      begins with `where`.
  """
  import jinja2

  fault = None
  try:
    return _compiled(source).render(
      messages=[dict(message) for message in messages],
      add_generation_prompt=add_generation_prompt,
      **{'tools': None, 'documents': None, **variables},
    )
  except jinja2.TemplateSyntaxError as error:
    fault = f'does not parse: {_line(error)} (its line {error.lineno})'
  except jinja2.exceptions.SecurityError as error:
    fault = f'does what the sandbox forbids: {_line(error)}'
  except Exception as error:  # What runs in there may raise anything.
    if type(error) is jinja2.TemplateError:  # Of raise_exception alone.
      roles = ', '.join(str(message.get('role')) for message in messages)
      remedy = 'use the plain prompt style (--text prompt_style=plain)'
      if 'system' in roles:
        remedy += ', or no system prompt (--text system_prompt=)'
      raise ChatTemplateError(
        f'{where}: its chat template refuses messages of the roles {roles}: {_line(error)}; '
        f'{remedy}',
        refused=True,
      ) from None
    fault = f'fails: {type(error).__name__}: {_line(error)}'
  raise ChatTemplateError(
    f'{where}: its chat template {fault}; use the plain prompt style (--text '
    'prompt_style=plain), or put a template that works into chat_template.jinja beside the '
    'tokenizer'
  )


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
  return _environment().from_string(source)


@functools.cache
def _environment() -> Any:
  """What a template may use."""
  import jinja2
  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said; it changes nothing in the text."""

    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.Scope(body, lineno=line)

  class Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore, which lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any):
      attributes = dict(*args[1:], **kwargs)
      for name in attributes:
        _check_name(name)
      jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
      _check_name(name)
      super().__setitem__(name, value)

  def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith('_'):
      raise jinja2.exceptions.SecurityError(f'the name {name!r} in a namespace')

  def raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  named: dict[str, Callable] = {
    'raise_exception': raise_exception,
    'strftime_now': lambda form: datetime.datetime.now().strftime(form),
    'dict': lambda *args, **kwargs: dict(*args, **kwargs),
    'namespace': Namespace,
  }
  environment.globals.update(named)
  return environment


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: Any = None,
  sort_keys: bool = False,
) -> str:
  """Jinja's own escapes what HTML would read."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )
