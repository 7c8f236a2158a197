"""Parts of one checkpoint or several, composed to one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.text import templates, vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.data.text_config import TextConfig
from ralm_jax.interop import gguf_tokenizer, part as part_lib, recognition
from ralm_jax.interop.files.gguf_file import GgufFile
from ralm_jax.interop.part import Leftover, Part
from ralm_jax.interop.recognition import Recognised
from ralm_jax.models.readings import READINGS
from ralm_jax.models.retrieval_lm import RetrievalLM

# How scores that are no cosines become probabilities: RAG's way, and Atlas's.
INNER_PRODUCTS = dict(scale_scores=False, temperature_score=1.0)
SCALED_SCORES = dict(
  scale_scores=RetrievalLM.scale_scores, temperature_score=RetrievalLM.temperature_score
)


@dataclasses.dataclass(frozen=True)
class Gathered:
  """The parts of a conversion, of one checkpoint or of several."""

  parts: dict[str, Part]
  sources: list[tuple[str, Recognised]]
  leftovers: list[tuple[str, Leftover]]
  spec: Specification | None  # Of a run of ours, where that is what is converted.
  model_fields: dict[str, Any]  # Of `RetrievalLM`, as the formats say.
  foreign: frozenset[str] = frozenset()  # Sides that are not of the run `spec` is of.

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

  Sources are (side or None, path); what a side is named for wins over what a whole model brings.

  Raises:
    FileNotFoundError, ValueError: as `recognition.recognise`, or when two checkpoints bring the
      same side or do not go together, or when `retriever_heads` is of none of them.
  """
  parts: dict[str, Part] = {}
  named: set[str] = set()
  found = [recognition.recognise(path, side, retriever_heads) for side, path in sources]
  if retriever_heads is not None and not any(one.format == recognition.ATLAS for one in found):
    raise ValueError(
      '--retriever_heads is of Atlas checkpoints, which do not say it; found '
      f'{", ".join(one.format for one in found)}. Leave it out.'
    )
  leftovers: list[tuple[str, Leftover]] = []
  spec = run_source = None
  fields: dict[str, Any] = {}
  # Whole models first, so that what is named replaces their parts.
  for (side, path), one in sorted(zip(sources, found), key=lambda item: item[0][0] is not None):
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
  _choose_towers(parts, named)
  foreign = frozenset(side for side, part in parts.items() if part.source is not run_source)
  recognised = [(path, one) for (_, path), one in zip(sources, found)]
  return Gathered(parts, recognised, leftovers, spec, fields, foreign)


def _choose_towers(parts: dict[str, Part], named: set[str]) -> None:
  """Leaves one tower or two: what is named replaces what a whole model brings."""
  towers = [s for s in ('query_encoder', 'passage_encoder') if s in parts]
  if 'retriever' not in parts or not towers:
    return
  if 'retriever' in named and any(tower in named for tower in towers):
    raise ValueError(
      'retriever= is one tower for queries and passages; give it, or '
      'query_encoder= and passage_encoder=.'
    )
  if 'retriever' in named:
    for tower in towers:
      del parts[tower]
  else:
    shared = parts.pop('retriever')
    for tower in ('query_encoder', 'passage_encoder'):
      parts.setdefault(tower, shared)


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
  """The model of the parts; ValueError where a part is missing, or the towers differ."""
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
      f'There is no {absent} in {paths}; give --from {absent}=PATH as well. --allow_missing '
      'initialises it at random, which is enough where the index is never embedded anew.'
    )
  first, *others = encoders.values()
  for other in others:
    _check_alike(first, other)
  fields = dict(gathered.model_fields)
  if reading is not None:
    fields['reading'] = reading
  kind = READINGS.get(fields.get('reading', ''))
  marginalizes = kind is not None and kind.marginalizes
  if marginalizes and not (gathered.spec and gathered.spec.model.marginalizes):
    # RAG: plain inner products, and the reader's likelihood alone teaches.
    fields |= {'gold_score': 'none', **({} if first.normalize else INNER_PRODUCTS)}
  if gathered.foreign.issuperset(encoders):
    was_normalized = gathered.spec is not None and gathered.spec.model.normalize_embeddings
    if was_normalized and not first.scores:  # What the run says is of cosines.
      fields |= INNER_PRODUCTS if marginalizes else SCALED_SCORES
    fields |= first.scores
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

  def pooling(part: Part) -> str:
    how = 'first token' if part.pooling == 'cls' else 'mean'
    return f'{"DPR" if part.side else "BERT"} ({how})'

  def scale(part: Part) -> str:
    return 'scaled to unit length' if part.normalize else 'as they are'

  ours, theirs = (dataclasses.asdict(part.config) for part in (first, other))
  differing = [
    f'{name} {ours[name]} and {theirs[name]}' for name in ours if ours[name] != theirs[name]
  ]
  if differing:
    field, found = 'configuration', ', '.join(differing)
  elif (first.pooling or 'mean') != (other.pooling or 'mean'):
    field, found = 'pooling', f'{pooling(first)} and {pooling(other)}'
  elif first.normalize != other.normalize:
    field, found = 'normalisation', f'{scale(first)} and {scale(other)}'
  else:
    return
  raise ValueError(
    f'query_encoder and passage_encoder differ in their {field}: {found}; '
    'give two towers of one kind.'
  )


def make_text(gathered: Gathered, overrides: Mapping[str, Any]) -> TextConfig:
  """Formats and lengths that the parts were trained with, where that is known."""
  reader, encoders = gathered.parts['reader'], gathered.encoders
  fields: dict[str, Any] = {}
  if gathered.spec is not None:
    fields = dataclasses.asdict(gathered.spec.text)
    _drop_formats(gathered, gathered.spec, fields)
  if reader.kind == 'bart' and any(part.side for part in encoders.values()):
    fields['n_passages'] = 5  # As RAG was trained.
  # What the run says of one tower wins over what a new one brings.
  for side in sorted(encoders, key=lambda side: side not in gathered.foreign):
    fields |= encoders[side].text
    if encoders[side].source is reader.source:  # Reader and retriever learnt together.
      fields['query_format'] = gathered.spec and gathered.spec.text.query_format
  return TextConfig(**{**fields, **reader.text, **overrides})


def _drop_formats(gathered: Gathered, spec: Specification, fields: dict[str, Any]) -> None:
  """Leaves out formats of a run that belong to what has been replaced."""
  before = recognition.reader_kind(spec.model.reader_config)
  if gathered.parts['reader'].kind != before:
    for name in ('question_format', 'target_format', 'reader_format'):
      del fields[name]
  if gathered.foreign.issuperset(gathered.encoders) and (
    fields['retriever_format'] == templates.DPR_RETRIEVER_FORMAT
  ):
    del fields['retriever_format']


def find_vocabulary(gathered: Gathered, module: str, path: str | None = None) -> Vocabulary | None:
  """The vocabulary of the reader or the retriever; None where none is found."""
  if path is not None:
    return gguf_tokenizer.load_vocabulary(path)
  readers = {'reader': gathered.parts['reader']} if 'reader' in gathered.parts else {}
  for part in (readers if module == 'reader' else gathered.encoders).values():
    if part.vocabulary is not None:
      return part.vocabulary
    for folder in part.vocabulary_directories:
      if found := _in_gguf(folder) or vocabularies.in_folder(folder):
        return found
  return None


def _in_gguf(path: str) -> Vocabulary | None:
  return gguf_tokenizer.vocabulary(GgufFile(path)) if path.endswith('.gguf') else None


def find_vocabularies(
  gathered: Gathered, files: Mapping[str, str | None]
) -> dict[str, Vocabulary | None]:
  """`find_vocabulary` of both modules; `files` by module, where they are given."""
  return {module: find_vocabulary(gathered, module, path) for module, path in files.items()}


def make_specification(
  gathered: Gathered, model: RetrievalLM, text: TextConfig, files: Mapping[str, str | None]
) -> Specification:
  """A run folder but its weights; ValueError where a vocabulary is missing or does not fit."""
  found: dict[str, Vocabulary] = {}
  for module, vocabulary in find_vocabularies(gathered, files).items():
    if vocabulary is None:
      raise ValueError(
        f'No vocabulary of the {module} lies beside its weights; name the '
        f'file with --{module}_vocabulary.'
      )
    found[module] = vocabulary
  names = ['pad_id', 'bos_id', *(['eos_id'] if files['reader'] is None else [])]
  model = specification.with_ids_of(model, found['reader'], names)
  if files['retriever'] is None and gathered.foreign.issuperset(gathered.encoders):
    # The tokenizer pads, as in transformers, whatever config.json says (multilingual E5).
    config: Any = model.retriever_config
    config = dataclasses.replace(config, pad_id=found['retriever'].pad_id)
    model = dataclasses.replace(model, retriever_config=config)
  spec = Specification(model, QueryTokenizer(text, found['reader'], found['retriever']))
  spec.check()
  return spec
