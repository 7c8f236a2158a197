"""Retrieval-augmented language models in JAX and Flax: the project's nouns."""

import importlib

__version__ = '0.1.0'

_NOUNS = {
  'BartConfig': 'models.bart',
  'BertConfig': 'models.bert',
  'DecoderConfig': 'models.decoder_config',
  'DecoderLM': 'models.decoder_lm',
  'DualEncoder': 'models.dual_encoder',
  'Evaluator': 'evaluation.evaluator',
  'FusionInDecoder': 'models.fid',
  'PassageStore': 'data.corpus.passage_store',
  'RetrievalClient': 'retrieval_service.client',
  'RetrievalLM': 'models.retrieval_lm',
  'T5Config': 'models.t5',
  'ask': 'runs.asking',
  'open_checkpoint': 'runs.opening',
  'open_evaluator': 'runs.opening',
}
__all__ = list(_NOUNS)


def __getattr__(name: str):
  """Imports a noun when it is first used; `import ralm_jax` alone is instant."""
  if name not in _NOUNS:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = _NOUNS[name]
  if not module.startswith('retrieval_service'):
    module = f'ralm_jax.{module}'
  return getattr(importlib.import_module(module), name)
