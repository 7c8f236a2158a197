"""A conversion before it is run: which tensor goes where, and what is amiss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import os
import re
from typing import Any

from flax import linen as nn
import jax

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.text import templates, vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.interop import part as part_lib, recognition, tensor_maps
from ralm_jax.interop.part import Leftover, Part
from ralm_jax.interop.recognition import Recognised
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.retrieval_lm import RetrievalLM

_VOCABULARY_FILES = {
  't5': ('spiece.model',),
  'bart': ('tokenizer.json', 'vocab.json'),
  'bert': ('vocab.txt',),
}


@dataclasses.dataclass(frozen=True)
class Gathered:
  """The parts of a conversion, of one checkpoint or of several.

  Attributes:
    parts: by side.
    sources: (path, what it is), in the order given.
    leftovers: (path, tensor), of every checkpoint.
    spec: of a run of ours, where that is what is converted.
    model_fields: of `RetrievalLM`, as the formats say.
    foreign: sides that are not of the run `spec` is of.
  """

  parts: dict[str, Part]
  sources: list[tuple[str, Recognised]]
  leftovers: list[tuple[str, Leftover]]
  spec: Specification | None
  model_fields: dict[str, Any]
  foreign: frozenset[str] = frozenset()

  @property
  def tied(self) -> bool:
    return 'retriever' in self.parts

  @property
  def encoders(self) -> dict[str, Part]:
    return {s: p for s, p in self.parts.items() if s in recognition.ENCODERS}

  @property
  def needed(self) -> list[str]:
    """What a run needs and there is none of."""
    found = {'reader': 'reader' in self.parts, 'retriever': self.encoders}
    return [name for name, there in found.items() if not there]

  @property
  def missing_tower(self) -> str | None:
    """The second of two towers, where there is one alone."""
    if self.tied or len(self.encoders) != 1:
      return None
    return next(side for side in ('query_encoder', 'passage_encoder') if side not in self.encoders)


def gather(
  sources: Sequence[tuple[str | None, str]], retriever_heads: int | None = None
) -> Gathered:
  """Finds the parts of a conversion.

  Args:
    sources: (side or None, path); what a side is named for wins over what a
      whole model brings.
    retriever_heads: of an Atlas checkpoint, which does not say.

  Raises:
    FileNotFoundError, ValueError: as `recognition.recognise`, or when two
      checkpoints bring the same side or do not go together, or when
      `retriever_heads` is of none of them.
  """
  parts: dict[str, Part] = {}
  named: set[str] = set()
  found = [recognition.recognise(path, side, retriever_heads) for side, path in sources]
  if retriever_heads is not None and not any(one.format == recognition.ATLAS for one in found):
    raise ValueError(
      '--retriever_heads is of Atlas checkpoints, which do not say it; found '
      f'{", ".join(one.format for one in found)}. Leave it out.'
    )
  found = list(zip((path for _, path in sources), found))
  leftovers: list[tuple[str, Leftover]] = []
  spec, fields, run_source = None, {}, None
  # Whole models first, so that what is named replaces their parts.
  for (side, path), (_, one) in sorted(
    zip(sources, found), key=lambda item: item[0][0] is not None
  ):
    if side == 'reader':
      fields = {}  # They were those of the reader that it replaces.
    fields |= one.model_fields
    if spec is None and one.spec is not None:
      spec, run_source = one.spec, one.parts['reader'].source
    for name, part in one.parts.items():
      if name in parts and (side is None or name in named):
        raise ValueError(f'Two checkpoints bring a {name}, the second is {path}; give one.')
      parts[name] = part
      if side is not None:
        named.add(name)
    leftovers += [(path, left) for left in part_lib.leftovers(one.claimed)]
  towers = [s for s in ('query_encoder', 'passage_encoder') if s in parts]
  if 'retriever' in parts and towers:
    if 'retriever' in named and any(tower in named for tower in towers):
      raise ValueError(
        'retriever= is one tower for queries and passages; give it, or '
        'query_encoder= and passage_encoder=.'
      )
    # What is named replaces what a whole model brings.
    if 'retriever' in named:
      for tower in towers:
        del parts[tower]
    else:
      shared = parts.pop('retriever')
      for tower in ('query_encoder', 'passage_encoder'):
        parts.setdefault(tower, shared)
  foreign = frozenset(side for side, part in parts.items() if part.source is not run_source)
  return Gathered(parts, found, leftovers, spec, fields, foreign)


def configure(
  gathered: Gathered,
  *,
  scan_layers: bool | None = None,
  second_moment_layer_norm: bool | None = None,
  dtype: str | None = None,
) -> Gathered:
  """Replaces fields of all configurations; None leaves them."""
  both = {'scan_layers': scan_layers, 'dtype': dtype}
  encoder = both | {'second_moment_layer_norm': second_moment_layer_norm}

  def configured(side: str, part: Part) -> Part:
    changes = both if side == 'reader' else encoder
    changes = {k: v for k, v in changes.items() if v is not None}
    return dataclasses.replace(part, config=dataclasses.replace(part.config, **changes))

  return dataclasses.replace(
    gathered, parts={side: configured(side, part) for side, part in gathered.parts.items()}
  )


def make_model(
  gathered: Gathered, reading: str | None = None, *, allow_missing: bool = False
) -> RetrievalLM:
  """The model of the parts.

  Args:
    gathered: with a reader and a retriever.
    reading: as `RetrievalLM.reading`; None for what the checkpoints say.
    allow_missing: one of two towers may be missing.

  Raises:
    ValueError: a part is missing, or the towers differ.
  """
  encoders = gathered.encoders
  paths = ', '.join(path for path, _ in gathered.sources)
  if gathered.needed:
    raise ValueError(
      f'A run needs a reader and a retriever; there is no {gathered.needed[0]} '
      f'in {paths}. Give --from {gathered.needed[0]}=PATH as well.'
    )
  if gathered.missing_tower and not allow_missing:
    absent = gathered.missing_tower
    raise ValueError(
      f'There is no {absent} in {paths}; give --from '
      f'{absent}=PATH as well. --allow_missing initialises it at random, '
      'which is enough where the index is never embedded anew.'
    )
  first, *others = encoders.values()
  for other in others:
    _check_alike(first, other)
  fields = dict(gathered.model_fields)
  if reading is not None:
    fields['reading'] = reading
  marginalizes = fields.get('reading', 'fusion') != 'fusion'
  if marginalizes and not (gathered.spec and gathered.spec.model.marginalizes):
    # RAG: plain inner products, and the reader's likelihood alone teaches.
    fields |= {'gold_score': 'none', 'scale_scores': False, 'temperature_score': 1.0}
  fields |= dict(
    reader_config=gathered.parts['reader'].config,
    retriever_config=first.config,
    tied_retriever=gathered.tied,
    normalize_embeddings=first.normalize,
    pooling=first.pooling or 'mean',
  )
  if gathered.spec is not None:
    if gathered.tied != gathered.spec.model.tied_retriever:
      fields['query_side'] = None
    return dataclasses.replace(gathered.spec.model, **fields)
  return RetrievalLM(**fields)


def _check_alike(first: Part, other: Part) -> None:
  """Raises ValueError where two parts are not towers of one retriever."""
  ours, theirs = (dataclasses.asdict(part.config) for part in (first, other))
  differing = [
    f'{name} {ours[name]} and {theirs[name]}' for name in ours if ours[name] != theirs[name]
  ]
  if differing:
    field, found = 'configuration', ', '.join(differing)
  elif (first.pooling or 'mean') != (other.pooling or 'mean'):
    field, found = (
      'pooling',
      ' and '.join(
        'DPR (first token)'
        if part.side
        else 'BERT (first token)'
        if part.pooling == 'cls'
        else 'BERT (mean)'
        for part in (first, other)
      ),
    )
  elif first.normalize != other.normalize:
    field, found = (
      'normalisation',
      ' and '.join(
        'scaled to unit length' if part.normalize else 'as they are' for part in (first, other)
      ),
    )
  else:
    return
  raise ValueError(
    f'query_encoder and passage_encoder differ in their {field}: {found}; '
    'give two towers of one kind.'
  )


def make_text(gathered: Gathered, overrides: dict[str, Any]) -> TextConfig:
  """Formats and lengths that the parts were trained with, where that is known."""
  reader, encoders = gathered.parts['reader'], gathered.encoders
  fields: dict[str, Any] = {}
  if gathered.spec is not None:
    fields = dataclasses.asdict(gathered.spec.text)
    _drop_formats(gathered, fields)
  if reader.kind == 'bart' and any(part.side for part in encoders.values()):
    fields['n_passages'] = 5  # As RAG was trained.
  # What the run says of one tower wins over what a new one brings.
  for side in sorted(encoders, key=lambda side: side not in gathered.foreign):
    fields |= encoders[side].text
  return TextConfig(**{**fields, **reader.text, **overrides})


def _drop_formats(gathered: Gathered, fields: dict[str, Any]) -> None:
  """Leaves out formats of a run that belong to what has been replaced."""
  before = 'bart' if isinstance(gathered.spec.model.reader_config, BartConfig) else 't5'
  if gathered.parts['reader'].kind != before:
    for name in ('question_format', 'target_format', 'reader_format'):
      del fields[name]
  if gathered.foreign.issuperset(gathered.encoders) and (
    fields['retriever_format'] == templates.DPR_RETRIEVER_FORMAT
  ):
    del fields['retriever_format']


def find_vocabulary(gathered: Gathered, module: str, path: str | None = None) -> Vocabulary | None:
  """The vocabulary of the reader or the retriever; None where none is found.

  Args:
    gathered: the parts.
    module: 'reader' or 'retriever'.
    path: of the file, where it is given.
  """
  if path is not None:
    return vocabularies.load_vocabulary(path)
  parts = (
    [gathered.parts['reader']]
    if module == 'reader' and 'reader' in gathered.parts
    else list(gathered.encoders.values())
    if module == 'retriever'
    else []
  )
  for part in parts:
    if part.vocabulary is not None:
      return part.vocabulary
    for folder in part.vocabulary_directories:
      for name in _VOCABULARY_FILES[part.kind]:
        candidate = os.path.join(folder, name)
        if os.path.isfile(candidate):
          return vocabularies.load_vocabulary(candidate)
  return None


def make_specification(
  gathered: Gathered,
  model: RetrievalLM,
  text: TextConfig,
  reader_vocabulary: str | None = None,
  retriever_vocabulary: str | None = None,
) -> Specification:
  """The whole of a run folder but its weights.

  Raises:
    ValueError: a vocabulary is not found, or does not fit its model.
  """
  found = {}
  for module, path in (('reader', reader_vocabulary), ('retriever', retriever_vocabulary)):
    vocabulary = find_vocabulary(gathered, module, path)
    if vocabulary is None:
      raise ValueError(
        f'No vocabulary of the {module} lies beside its weights; name the '
        f'file with --{module}_vocabulary.'
      )
    found[module] = vocabulary
  spec = Specification(model, QueryTokenizer(text, found['reader'], found['retriever']))
  spec.check()
  return spec


@dataclasses.dataclass(frozen=True)
class Target:
  """Where one entry goes.

  Attributes:
    side: of the part.
    part: that it is of.
    entry: in the foreign checkpoint.
    path: of our parameter (`reader/encoder/layers/…`).
    row: of a scanned stack; None where the parameter is of one layer.
  """

  side: str
  part: Part
  entry: Entry
  path: str
  row: int | None

  @property
  def missing(self) -> bool:
    return self.entry.name not in self.part.source


_LAYER = re.compile(r'(^|/)layers_(\d+)(?=/)')


def targets(gathered: Gathered) -> Iterator[Target]:
  """Every entry with its place in the parameters of a RetrievalLM."""
  for side, part in gathered.parts.items():
    prefix = side if side in ('reader', 'retriever') else f'retriever/{side}'
    for entry in part.entries:
      path, row = entry.path, None
      if part.config.scan_layers and (match := _LAYER.search(path)):
        path, row = _LAYER.sub(r'\1layers', path, count=1), int(match[2])
      yield Target(side, part, entry, f'{prefix}/{path}', row)


def check(gathered: Gathered, *, allow_missing: bool, allow_unused: bool) -> list[Target]:
  """Compares all shapes, and what is there with what is needed.

  Returns:
    The targets whose tensors are missing, where that is allowed.

  Raises:
    ValueError: a tensor is of another shape or type, missing or left over.
  """
  missing, wrong = [], []
  for target in targets(gathered):
    if target.missing:
      missing.append(target)
    else:
      problem = tensor_maps.problem(target.part.source, target.entry)
      if problem:
        wrong.append(f'{target.part.source.description}: {problem}')
  if wrong:
    raise ValueError('Tensors are not what the configuration calls for: ' + _some(wrong) + '.')
  if missing and not allow_missing:
    raise ValueError(
      'Tensors are missing: '
      + _some([f'{t.entry.name} of {t.part.source.description} ({t.path})' for t in missing])
      + '; is it a checkpoint of another architecture? --allow_missing '
      'initialises them at random.'
    )
  unused = [f'{left.name} of {path}' for path, left in gathered.leftovers if left.reason is None]
  if unused and not allow_unused:
    raise ValueError(
      f'Tensors are left over: {_some(unused)}; is it a checkpoint of '
      'another architecture? --allow_unused leaves them out.'
    )
  return missing


def _some(items: Sequence[str], count: int = 4) -> str:
  more = f' (and {len(items) - count} more)' if len(items) > count else ''
  return '; '.join(items[:count]) + more


def abstract_params(model: RetrievalLM) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and dtype of every parameter of a model by its path."""
  tree = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  return {
    '/'.join(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
