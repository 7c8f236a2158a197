"""Traces every model with its signatures checked; `python -m tests.models.shape_checks`."""

import functools
import importlib

import beartype
import jax
from jax import numpy as jnp, tree_util
import jaxtyping

B, K, S, T, P, V = 2, 4, 6, 5, 7, 30
SIZES = dict(vocab_size=V, emb_dim=16, num_heads=2)
of = jax.ShapeDtypeStruct


def functions_alone(function):
  """Dataclasses are trees as well, and JAX fills them with other things than arrays."""
  return function if function.__name__ == '__init__' else beartype.beartype(function)


def texts(name, *shape):
  return {f'{name}_tokens': of(shape, jnp.int32), f'{name}_mask': of(shape, jnp.bool_)}


def check(model, **options):
  """Traces everything that a model does: nothing is compiled or computed."""
  rng = jax.random.key(0)
  params = jax.eval_shape(model.init, rng)
  params = tree_util.tree_map(lambda x: x.unbox(), params, is_leaf=lambda x: hasattr(x, 'unbox'))

  def run(params, arrays, learns):
    batch = retrieval_lm.ReaderBatch(**arrays)
    jax.grad(lambda p: model.loss_fn(p, batch, rng, retriever_learns=learns).reader.total)(params)
    model.loss_weights(batch), model.score(params, batch), model.passage_effects(params, batch)
    for targets in ([[9, 7, 1], [9, 8, 1]], [[9, 3, 7, 1], [9, 8, 1]]):
      model.choice_logits(params, batch, ChoiceTokens.make(targets))
    for decoding in (
      DecodingOptions(),
      DecodingOptions(num_beams=2, num_return=2),
      DecodingOptions(sample=True, top_k=3, top_p=0.9, num_return=3),
    ):
      model.predict(params, batch, max_length=4, options=decoding, rng=rng, prefill_chunk=2)
    return model.rerank(params, batch, 2)

  arrays = texts('reader', B, K, S) | texts('target', B, T) | texts('query', B, 4)
  arrays |= texts('retriever', B, K, P) | {'passage_mask': of((B, K), jnp.bool_)}
  arrays |= {'prefix_tokens': of((B, 3), jnp.int32), 'prefix_lengths': of((B,), jnp.int32)}
  if isinstance(model.reader_config, DecoderConfig):
    arrays |= texts('head', B, 3) | texts('tail', B, 4)
  jax.eval_shape(run, params, arrays, of((), jnp.bool_))


def main():
  t5 = T5Config(
    **SIZES,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
    scan_layers=True,
    remat_policy='dots',
  )
  bart = BartConfig(
    **SIZES,
    encoder_mlp_dim=24,
    decoder_mlp_dim=24,
    num_encoder_layers=1,
    num_decoder_layers=2,
    max_positions=16,
  )
  bert = BertConfig(**SIZES, num_layers=1, mlp_dim=24, max_positions=16, dropout_rate=0.1)
  make = functools.partial(retrieval_lm.RetrievalLM, retriever_config=bert)
  names = tuple(name for name in distillation.GOLD_SCORES if name != 'none')
  # Each computes all gold scores.
  check(make(t5, compared_gold_scores=names, gold_encoder='shared'))
  check(
    make(
      bart,
      gold_score='emdr2',
      compared_gold_scores=names,
      emdr2_level='token',
      gold_chunk=2,
      n_context=2,
    )
  )
  check(make(t5, reading='rag_sequence', gold_score='none', gold_chunk=2))
  check(make(bart, reading='rag_token', gold_score='none'))
  decoder = DecoderConfig(
    **SIZES,
    num_kv_heads=1,
    head_dim=8,
    num_decoder_layers=1,
    mlp_dim=24,
    window=4,
    query_key_norm=True,
    post_norms=True,
    scan_layers=True,
    remat_policy='dots',
    dropout_rate=0.1,
  )
  check(make(decoder, reading='in_context', gold_score='leave_one_out'))
  check(make(decoder, reading='parallel'))
  rows = jnp.ones((3, 8))
  contrastive.in_batch_contrastive(rows, rows, temperature=1.0, symmetric=True)
  try:
    gold_scores.perplexity(jnp.zeros((2, 3, 5)), jnp.ones((2, 4), bool))
  except jaxtyping.TypeCheckError:
    print('a wrong shape fails')


if __name__ == '__main__':
  # Where jaxtyping looks for `functions_alone`.
  importlib.import_module('tests.models.shape_checks')
  packages = ['ralm_jax.models', 'ralm_jax.losses', 'ralm_jax.decoding']
  checker = 'tests.models.shape_checks.functions_alone'
  with jaxtyping.install_import_hook(packages, checker):
    from ralm_jax.decoding.options import DecodingOptions
    from ralm_jax.losses import contrastive, gold_scores
    from ralm_jax.models import distillation, retrieval_lm
    from ralm_jax.models.bart import BartConfig
    from ralm_jax.models.bert import BertConfig
    from ralm_jax.models.choices import ChoiceTokens
    from ralm_jax.models.decoder_config import DecoderConfig
    from ralm_jax.models.t5 import T5Config
  main()
