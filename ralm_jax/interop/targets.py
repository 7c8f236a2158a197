"""Which tensor goes where, and what is amiss, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import re

from flax import linen as nn
import jax

from ralm_jax.interop import decoder_maps, tensor_maps
from ralm_jax.interop.composing import Gathered
from ralm_jax.interop.part import Part
from ralm_jax.interop.tensor_maps import Entry
from ralm_jax.models.retrieval_lm import RetrievalLM


@dataclasses.dataclass(frozen=True)
class Target:
  """Where one entry goes."""

  side: str
  part: Part
  entry: Entry
  path: str  # Of our parameter (`reader/encoder/layers/…`).
  row: int | None  # Of a scanned stack; None where the parameter is of one layer.

  @property
  def missing(self) -> bool:
    return self.entry.name not in self.part.source


_LAYER = re.compile(r'(^|/)layers_(\d+)(?=/)')


def of(gathered: Gathered) -> Iterator[Target]:
  """Every entry with its place in the parameters of a RetrievalLM."""
  for side, part in gathered.parts.items():
    prefix = side if side in ('reader', 'retriever') else f'retriever/{side}'
    for entry in part.entries:
      path, row = entry.path, None
      if part.kind == 'decoder' and part.config.scan_layers:
        path, row = decoder_maps.scanned(part.config, path)
      elif part.config.scan_layers and (match := _LAYER.search(path)):
        path, row = _LAYER.sub(r'\1layers', path, count=1), int(match[2])
      yield Target(side, part, entry, f'{prefix}/{path}', row)


def check(gathered: Gathered, *, allow_missing: bool, allow_unused: bool) -> list[Target]:
  """Compares all shapes, and what is there with what is needed.

  Returns the targets whose tensors are missing, where that is allowed. Raises ValueError where a
  tensor is of another shape or type, missing or left over.
  """
  missing, wrong = [], []
  for target in of(gathered):
    if target.missing:
      missing.append(target)
    elif problem := tensor_maps.problem(target.part.source, target.entry):
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
