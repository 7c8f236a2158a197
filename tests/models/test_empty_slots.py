"""What a question gets does not depend on empty slots, its batch, or padding.

Each random question is read alone with exactly its passages, and in a crowd: in another order,
with strangers, in slots and lengths that nobody fills. Empty slots hold text that may suggest
anything.
"""

import functools

from flax import linen as nn
import jax
import numpy as np
import pytest

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.models import distillation
from ralm_jax.models.bart import BartConfig
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.models.reader_batch import ReaderBatch, slots_read
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config

VOCAB, TARGET, QUERY, DIM = 40, 4, 5, 16
CHOICES = ChoiceTokens.make([[39, 7, 1], [39, 3, 9, 1]])
GOLD = tuple(name for name, kind in distillation.GOLD_SCORES.items() if kind.teaches)
DECODINGS = {
  'greedy': DecodingOptions(),
  'beams': DecodingOptions(num_beams=2),
  'draws': DecodingOptions(sample=True, num_return=2),
}
READERS = {
  't5': T5Config(
    vocab_size=VOCAB,
    emb_dim=DIM,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=1,
    num_decoder_layers=2,
  ),
  'bart': BartConfig(
    vocab_size=VOCAB,
    emb_dim=DIM,
    num_heads=2,
    encoder_mlp_dim=24,
    decoder_mlp_dim=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    max_positions=32,
  ),
  'decoder': DecoderConfig(
    vocab_size=VOCAB,
    emb_dim=DIM,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    num_decoder_layers=2,
    mlp_dim=24,
    max_positions=96,
    eos_id=1,
  ),
}
CASES = [
  ('t5', {'gold_score': 'perplexity', 'kl_reduction': 'element'}),
  ('t5', {'reading': 'rag_sequence', 'gold_score': 'none'}),
  pytest.param('t5', {'reading': 'rag_token', 'gold_score': 'none'}, marks=pytest.mark.slow),
  pytest.param('bart', {'gold_score': 'emdr2', 'n_context': 2}, marks=pytest.mark.slow),
  ('decoder', {'reading': 'in_context', 'n_context': 4}),
  pytest.param('decoder', {'reading': 'parallel'}, marks=pytest.mark.slow),
  pytest.param('decoder', {'reading': 'rag_token', 'gold_score': 'none'}, marks=pytest.mark.slow),
]


def _model(reader, **changes):
  return RetrievalLM(
    reader_config=READERS[reader],
    retriever_config=BertConfig(
      vocab_size=VOCAB, emb_dim=DIM, num_heads=2, num_layers=1, mlp_dim=24, max_positions=32
    ),
    **changes,
  )


def _question(rng, n_passages):
  """Arrays of one example with n passages, or with its bare query."""
  slots = max(1, n_passages)
  text = lambda *shape: (rng.integers(2, VOCAB, shape).astype(np.int32), np.ones(shape, bool))
  arrays = {
    'passage_mask': np.arange(slots) < n_passages,
    'draw_keys': rng.integers(0, 2**32, 2, dtype=np.uint32),
  }
  for name, shape in (
    ('reader', (slots, 7)),
    ('retriever', (slots, 6)),
    ('query', (QUERY,)),
    ('target', (TARGET,)),
    ('head', (4,)),
    ('tail', (5,)),
  ):
    tokens, mask = text(*shape)
    mask = mask & (np.arange(shape[-1]) < rng.integers(3, shape[-1] + 1, (*shape[:-1], 1)))
    arrays[f'{name}_tokens'], arrays[f'{name}_mask'] = tokens, mask
  return arrays


def _batch(questions, slots, longer, rng):
  """The questions in one batch: more slots, whose text is any text, and longer padding."""
  arrays = {}
  for name in questions[0]:
    rows = []
    for question in questions:
      row = question[name]
      if name == 'passage_mask' or row.ndim == 2:
        shape = (slots - len(row), *row.shape[1:])
        filling = rng.integers(2, VOCAB, shape) if row.dtype != bool else np.ones(shape, bool)
        row = np.concatenate([row, filling & (name != 'passage_mask')])
      if name.startswith(('reader', 'retriever', 'head', 'tail')):
        row = np.pad(row, [*[(0, 0)] * (row.ndim - 1), (0, longer)])
      rows.append(row)
    arrays[name] = np.stack(rows)
  return ReaderBatch(**arrays)


def _everything(model, params, batch):
  """All that a question gets, [b, ...]; per passage, where it is so, only of its passages."""
  found = {
    'score': model.score(params, batch),
    'choices': model.choice_logits(params, batch, CHOICES),
  }
  for name, options in DECODINGS.items():
    keys = jax.random.wrap_key_data(batch.draw_keys)
    answer = model.predict(params, batch, max_length=5, options=options, rng=keys)
    found |= {f'{name}: tokens': answer.tokens, f'{name}: log_probs': answer.log_probs}
  by_passage = {'effects': model.passage_effects(params, batch)}
  if model.distils:
    read = batch.without_empty_slots(model.n_read(batch))
    gold = {name: distillation.GOLD_SCORES[name].of(model) for name in GOLD}
    passes = model.make_gold_passes(params, read)
    by_passage |= {f'gold {n}': g.by_passage(g.scores(passes, read), read) for n, g in gold.items()}

  def losses(row):
    one = model.loss_fn(params, jax.tree.map(lambda x: x[None], row), None)
    return one.reader.total, one.retriever.total

  found['reader loss'], found['retriever loss'] = jax.lax.map(losses, batch)
  return found, by_passage


@pytest.mark.parametrize('reader,changes', CASES, ids=lambda x: str(x))
def test_alone_and_in_a_crowd(reader, changes):
  model = _model(reader, **changes)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0)))
  run = jax.jit(functools.partial(_everything, model))
  for seed in range(3):
    rng = np.random.default_rng(seed)
    counts = [0, 1, 2, 2, 1]
    questions = [_question(rng, n) for n in counts]
    order = rng.permutation(len(questions))
    crowd, by_passage = run(params, _batch([questions[i] for i in order], 5, 3, rng))
    for place, i in enumerate(order):
      alone, alone_by_passage = run(params, _batch([questions[i]], max(1, counts[i]), 0, rng))
      for name, value in alone.items():
        np.testing.assert_allclose(
          crowd[name][place], value[0], rtol=1e-4, atol=2e-5, err_msg=f'{name}, {counts[i]}'
        )
      for name, value in alone_by_passage.items():
        np.testing.assert_allclose(
          by_passage[name][place, : counts[i]],
          value[0, : counts[i]],
          rtol=1e-4,
          atol=2e-5,
          err_msg=f'{name}, {counts[i]}',
        )


def test_slots_that_are_read():
  mask = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
  assert slots_read(mask).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
