"""What a conversion does, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.interop import huggingface_export, targets
from ralm_jax.interop.composing import Gathered
from ralm_jax.interop.tensor_maps import Entry

# What a tower is for, and so is not to be used for while it is random.
_USES = {'query_encoder': 'answer questions', 'passage_encoder': 'embed a corpus'}


def report(gathered: Gathered, to_format: str, *, every_tensor: bool) -> Iterator[str]:
  """Lines that say what maps where and what does not."""
  for path, found in gathered.sources:
    yield f'{path}: {found.format} ({", ".join(found.parts)})'
  theirs = _foreign(gathered) if to_format == 'huggingface' else {}
  for side, part in gathered.parts.items():
    for note in part.notes:
      yield f'  {side}: {note}'
  count = missing = 0
  for target in targets.of(gathered):
    count += 1
    where = target.path + ('' if target.row is None else f'[{target.row}]')
    shape, transposed = target.entry.shape, target.entry.transpose
    entry = theirs.get((target.side, target.entry.path))
    if entry is not None:
      where = f'{target.side}/{entry.name}{_piece(entry)}'
      shape = entry.foreign_shape
      transposed = transposed != entry.transpose
    if target.missing:
      missing += 1
      yield f'  missing: {target.entry.name} -> {where} {list(shape)}'
    elif every_tensor:
      info = target.part.source.info(target.entry.name)
      yield (
        f'  {target.entry.name}{_piece(target.entry)} '
        f'{info.dtype}{list(info.shape)} -> {where} {list(shape)}'
        + (', transposed' if transposed else '')
      )
  tower = gathered.missing_tower
  if tower and to_format == 'run' and 'reader' in gathered.parts:
    (other,) = gathered.encoders.values()
    count += len(other.entries)
    missing += len(other.entries)
    yield (f'  missing: the whole {tower} (initialised at random; do not {_USES[tower]} with it)')
  for path, left in gathered.leftovers:
    yield f'  left over: {left.name} of {path} ({left.reason or "not known"})'
  harmless = sum(left.reason is not None for _, left in gathered.leftovers)
  yield (
    f'{count - missing} parameters mapped, {missing} missing, {len(gathered.leftovers) - harmless} '
    f'tensors left over, {harmless} known to be needless.'
  )


def choices(spec: Specification) -> Iterator[str]:
  """Lines on how a run's retriever is asked, and what its scores mean."""
  text, model = spec.text, spec.model
  asked = text.query_prompt + text.retriever_question_format
  yield (
    f'  retriever: is asked {asked!r} and reads {text.retriever_format!r} (--text query_prompt, '
    'query_format, retriever_format)'
  )
  kind = 'cosines' if model.normalize_embeddings else 'inner products'
  yield (
    f'  retriever: p(passage | question) is the softmax of {kind} / {model.score_divisor:.4g} '
    f'(scale_scores = {model.scale_scores}, temperature_score = {model.temperature_score})'
  )


def _piece(entry: Entry) -> str:
  if entry.part is None:
    return ''
  axis, index = entry.part
  return f'[{":," * axis}{index}]'


def _foreign(gathered: Gathered) -> dict[tuple[str, str], Entry]:
  """Hugging Face's entries by side and our path; none of what it has not."""
  found: dict[tuple[str, str], Entry] = {}
  for side, part in gathered.parts.items():
    try:
      _, entries = huggingface_export.export_map(side, part)
    except ValueError:
      continue  # `export_maps` says why.
    found |= {(side, entry.path): entry for entry in entries}
  return found
