"""What a sentence-transformers folder says of texts: prompts, lengths and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
import os
import re
from typing import Any

from ralm_jax.data.text import templates
from ralm_jax.data.text_config import TextConfig
from ralm_jax.files import named_source
from ralm_jax.interop import config_fields
from ralm_jax.interop.files import weight_files

PathLike = str | os.PathLike[str]
_CONFIG, _LENGTHS = 'config_sentence_transformers.json', 'sentence_bert_config.json'
# What its encode_query and encode_document look for, in turn.
_QUERY, _PASSAGE = ('query',), ('document', 'passage', 'corpus')
# Prompts of models whose folders say none, by the name that a model was saved or fetched under, as
# their cards have them. Those of no prompt stand here, too.
_PROMPTS: dict[str, dict[str, str]] = {
  r'(multilingual-)?e5-(small|base|large)(-v2)?': {'query': 'query: ', 'passage': 'passage: '},
  r'bge-(small|base|large)-en(-v1\.5)?': {
    'query': 'Represent this sentence for searching relevant passages: '
  },
  r'gte-(small|base|large)|contriever(-msmarco)?|(all-)?minilm-l\d+.*|multi-qa-.*': {},
}


def text(
  directory: PathLike, encoder: PathLike, positions: int
) -> tuple[dict[str, Any], list[str]]:
  """Fields of `TextConfig`, and lines on what is not obeyed."""
  fields: dict[str, Any] = {}
  lines: list[str] = []
  where, raw = _read(directory, _CONFIG)
  prompts = config_fields.nested({'prompts': {}, **raw}, 'prompts', where)
  if not prompts:
    prompts, note = _prompts_by_name(directory, encoder)
    lines += note
  named = raw.get('default_prompt_name')
  if named is not None and named not in prompts:
    raise ValueError(f'{where}: default_prompt_name is {named!r}, which is none of its prompts.')
  query, passage = (
    next((prompts[name] for name in names if name in prompts), prompts.get(named or ''))
    for names in (_QUERY, _PASSAGE)
  )
  for prompt in filter(None, (query, passage)):
    if not isinstance(prompt, str) or not prompt[-1].isspace():
      raise ValueError(
        f'{where}: prompt {prompt!r} is not supported: it must end with a space, since what '
        'follows is tokenised apart.'
      )
  if query:
    fields['query_prompt'] = query
  if passage:
    prompt = passage.replace('{', '{{').replace('}', '}}')
    fields['retriever_format'] = prompt + templates.RETRIEVER_FORMAT
  others = prompts.keys() - {*_QUERY, *_PASSAGE, raw.get('default_prompt_name')}
  if any(prompts[name] for name in others):
    lines.append(f'not obeyed: {_CONFIG}: prompts {", ".join(sorted(others))}')
  where, raw = _read(encoder, _LENGTHS)
  if raw.get('do_lower_case'):
    lines.append(f'{_LENGTHS}: do_lower_case is left to the tokenizer')
  limit = min(config_fields.whole_number(raw, 'max_seq_length', where, positions), positions)
  if raw.get('max_seq_length') is not None:
    fields['retriever_passage_length'] = limit
    fields['query_length'] = min(limit, TextConfig.query_length)
    if limit > TextConfig.query_length:
      lines.append(
        f'not obeyed: {_LENGTHS}: max_seq_length {limit} for queries, read to query_length '
        f'{TextConfig.query_length} (--text query_length={limit})'
      )
  return fields, lines


def _prompts_by_name(directory: PathLike, encoder: PathLike) -> tuple[dict[str, str], list[str]]:
  """Prompts of a model that its folder names, and a line on where they are from."""
  saved = str(_read(encoder, 'config.json')[1].get('_name_or_path') or '')
  for name in (saved, named_source.hub_name(os.fspath(directory)) or ''):
    last = re.split(r'[/_]', name.rstrip('/'))[-1].lower()
    for pattern, prompts in _PROMPTS.items():
      if re.fullmatch(pattern, last):
        said = ', '.join(f'{side} {prompt!r}' for side, prompt in prompts.items())
        return prompts, [f'prompts of {last}, whose folder says none: {said}'] if said else []
  return {}, [
    'no prompt of its queries and passages is known; where its card has some: --text '
    "query_prompt='query: ' retriever_format='passage: {title} {text}'"
  ]


def prompts(fields: Mapping[str, Any]) -> dict[str, str]:
  """The prompts of fields of `TextConfig`, as `text` reads them."""
  passage, _, rest = fields.get('retriever_format', '').partition(templates.RETRIEVER_FORMAT)
  found = {'query': fields.get('query_prompt', ''), 'document': '' if rest else passage}
  found['document'] = found['document'].replace('{{', '{').replace('}}', '}')
  return {name: prompt for name, prompt in found.items() if prompt}


def similarity(directory: PathLike) -> tuple[str | None, list[str]]:
  """How embeddings are to be compared, and a line where that is not how it is done.

  Cosines are inner products of embeddings of unit length.
  """
  name = _read(directory, _CONFIG)[1].get('similarity_fn_name')
  if name in (None, 'dot', 'dot_product', 'cosine'):
    return name, []
  done = 'embeddings are compared by inner product'
  return name, [f'not obeyed: {_CONFIG}: similarity_fn_name {name!r}; {done}']


def _read(directory: PathLike, name: str) -> tuple[str, dict[str, Any]]:
  path = os.path.join(directory, name)
  return path, weight_files.read_json(path) if os.path.isfile(path) else {}
