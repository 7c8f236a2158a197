"""Gold scores and retriever losses against transformers, in both forms.

The peer is a PyTorch T5 that is run passage by passage, as the definitions
read; its attention probabilities are its own and the norms of its values are
recorded on the way. `released` is checked against the formulas of the released
Atlas code, PyTorch's own KLDivLoss among them.
"""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.extend.core
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.interop import huggingface
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

B, K, L, T, V = 2, 3, 7, 5, 53
RETRIEVER = BertConfig(
  vocab_size=V,
  emb_dim=16,
  num_heads=2,
  num_layers=1,
  mlp_dim=32,
  max_positions=16,
  embedding_init_stddev=0.5,
)
RELEASED = dict(
  gold_reduction='mean',
  gold_normalization='released',
  emdr2_level='token',
  kl_reduction='element',
  temperature_score=0.3,
  temperature_gold=0.2,
)
PAPER = dict(temperature_score=0.3, temperature_gold=0.2)


@pytest.fixture(scope='module')
def peer():
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=V,
    d_model=24,
    d_kv=6,
    d_ff=32,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    decoder_start_token_id=0,
    dropout_rate=0.0,
    feed_forward_proj='relu',
    attn_implementation='eager',
  )
  return transformers.T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope='module')
def reader(peer, tmp_path_factory):
  from safetensors.torch import save_file

  folder = tmp_path_factory.mktemp('t5')
  peer.config.save_pretrained(folder)
  save_file(
    {k: v.detach().clone() for k, v in peer.state_dict().items()}, str(folder / 'model.safetensors')
  )
  return huggingface.load_t5(folder)


def _texts(rng, *shape):
  lengths = rng.integers(3, shape[-1] + 1, shape[:-1])
  mask = np.arange(shape[-1]) < lengths[..., None]
  return np.where(mask, rng.integers(3, V, shape), 0).astype(np.int32), mask


def _batch():
  rng = np.random.default_rng(3)
  arrays = {'passage_mask': np.ones((B, K), bool)}
  for name, shape in (
    ('reader', (B, K, L)),
    ('target', (B, T)),
    ('query', (B, 6)),
    ('retriever', (B, K, 6)),
  ):
    arrays[f'{name}_tokens'], arrays[f'{name}_mask'] = _texts(rng, *shape)
  return ReaderBatch(**arrays)


BATCH = _batch()
# Less optimised code compiles twice as fast; the tests are about the program.
_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
long = lambda x: torch.tensor(np.asarray(x), dtype=torch.long)


def _encode(peer):
  """Hidden states of every passage on its own: [B, K, L, d]."""
  with torch.no_grad():
    return torch.stack(
      [
        peer.encoder(
          input_ids=long(BATCH.reader_tokens[:, k]), attention_mask=long(BATCH.reader_mask[:, k])
        ).last_hidden_state
        for k in range(K)
      ],
      1,
    )


def _decode(peer, hidden, mask, **kwargs):
  """hidden: [B, n, L, d], mask: [B, n, L] -> the peer's decoder output."""
  from transformers.modeling_outputs import BaseModelOutput

  inputs = np.concatenate([np.zeros((B, 1)), np.asarray(BATCH.target_tokens)[:, :-1]], 1)
  with torch.no_grad():
    return peer(
      encoder_outputs=BaseModelOutput(last_hidden_state=hidden.reshape(B, -1, hidden.shape[-1])),
      attention_mask=long(mask).reshape(B, -1),
      decoder_input_ids=long(inputs),
      **kwargs,
    )


def _token_log_probs(logits, temperature=1.0):
  log_probs = torch.log_softmax(logits / temperature, -1)
  return log_probs.gather(-1, long(BATCH.target_tokens)[..., None])[..., 0].numpy()


def _each(peer, temperature=1.0):
  hidden = _encode(peer)
  return np.stack(
    [
      _token_log_probs(
        _decode(peer, hidden[:, k : k + 1], BATCH.reader_mask[:, k : k + 1]).logits, temperature
      )
      for k in range(K)
    ],
    1,
  )


def _leaving_out(peer):
  hidden = _encode(peer)
  result = []
  for k in range(K):
    mask = np.array(BATCH.reader_mask)
    mask[:, k] = False
    result.append(_token_log_probs(_decode(peer, hidden, mask).logits))
  return np.stack(result, 1)


def _attention(peer, released, layers=(0, 1, 2)):
  """Means over heads, layers, target tokens and passage tokens."""
  values = {}
  hooks = [
    block.layer[1].EncDecAttention.v.register_forward_hook(
      lambda module, inputs, output, i=i: values.__setitem__(i, output)
    )
    for i, block in enumerate(peer.decoder.block)
  ]
  output = _decode(peer, _encode(peer), BATCH.reader_mask, output_attentions=True)
  for hook in hooks:
    hook.remove()
  gold = np.zeros((B, K))
  for b in range(B):
    for k in range(K):
      keys = [k * L + j for j in range(L) if BATCH.reader_mask[b, k, j]]
      queries = [t for t in range(T) if BATCH.target_mask[b, t]]
      total = 0.0
      for layer in layers:
        probabilities = output.cross_attentions[layer][b].numpy()
        norms = np.linalg.norm(values[layer][b].reshape(K * L, 4, 6).numpy(), axis=-1)
        total += sum(np.mean(probabilities[:, t, j] * norms[j]) for t in queries for j in keys)
      gold[b, k] = total / (len(layers) * len(queries) * (256 if released else len(keys)))
  return gold


def _reduce(log_probs, released):
  total = (log_probs * BATCH.target_mask[:, None]).sum(-1)
  return total / BATCH.target_mask.sum(-1)[:, None] if released else total


def _gold(peer, name, released):
  if name == 'perplexity':
    return _reduce(_each(peer), released)
  if name == 'leave_one_out':
    return -_reduce(_leaving_out(peer), released)
  return _attention(peer, released)


def _loss(peer, name, released, scores):
  """The loss by the definition, from the retriever's scores [B, K]."""
  log_prior = torch.log_softmax(torch.tensor(np.asarray(scores)) / 0.3, -1)
  if name == 'emdr2':
    log_probs = torch.tensor(_each(peer, 0.2 if released else 1.0))
    mask = torch.tensor(np.asarray(BATCH.target_mask, np.float32))
    if released:
      marginal = torch.logsumexp(log_probs + log_prior[..., None], 1)
      return -(marginal * mask).sum() / mask.sum()
    sequence = (log_probs * mask[:, None]).sum(-1)
    return -torch.logsumexp(sequence + log_prior, -1).mean()
  gold = torch.tensor(_gold(peer, name, released), dtype=torch.float32)
  target = torch.softmax(gold / 0.2, -1)
  if released:
    return torch.nn.KLDivLoss()(log_prior, target)
  return torch.nn.KLDivLoss(reduction='batchmean')(log_prior, target)


@pytest.fixture(scope='module')
def built(reader):
  config, params = reader
  model = RetrievalLM(reader_config=config, retriever_config=RETRIEVER)
  retriever = nn.meta.unbox(model.init(jax.random.key(0)))['retriever']
  return model, {'reader': params, 'retriever': retriever}


LOSSES = ('perplexity', 'attention', 'leave_one_out', 'emdr2')


@pytest.mark.parametrize('form', ['paper', 'released'])
@pytest.mark.parametrize('name', LOSSES)
def test_losses(name, form, built, peer):
  released = form == 'released'
  model, params = built
  model = dataclasses.replace(model, gold_score=name, **(RELEASED if released else PAPER))

  @_jit
  def ours(params):
    gold = model.gold_scores(model.make_gold_passes(params, BATCH), BATCH)
    return (model.loss_fn(params, BATCH, None), model.retriever_scores(params, BATCH), gold)

  output, scores, gold = ours(params)
  expected = _loss(peer, name, released, scores)
  np.testing.assert_allclose(output.retriever.mean, expected, rtol=1e-4, atol=1e-6)
  # The weight is that of the whole batch, which accumulation divides by.
  np.testing.assert_allclose(output.retriever.weight, model.loss_weights(BATCH)[1])
  if name != 'emdr2':
    assert gold[name].dtype == jnp.float32
    np.testing.assert_allclose(gold[name], _gold(peer, name, released), rtol=1e-4, atol=1e-5)


def _gold_scores(model, params):
  return model.gold_scores(model.make_gold_passes(params, BATCH), BATCH)


VARIANTS = [
  dict(gold_chunk=1),
  dict(reader=dict(remat_policy='full')),
  dict(reader=dict(remat_policy='dots', scan_layers=True)),
  dict(n_context=2),
]


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_ways_to_compute_the_same(variant, built):
  """Chunks, rematerialisation, scanned layers, fewer passages read."""
  model, params = built
  model = dataclasses.replace(
    model, gold_score='perplexity', compared_gold_scores=('attention', 'leave_one_out', 'emdr2')
  )
  variant = dict(variant)
  config = dataclasses.replace(model.reader_config, **variant.pop('reader', {}))
  other = dataclasses.replace(model, reader_config=config, **variant)
  other_params = params
  if config.scan_layers:
    other_params = {**params, 'reader': _scanned(params['reader'], config)}
  one = _jit(lambda p: _gold_scores(model, p))(params)
  two = _jit(lambda p: _gold_scores(other, p))(other_params)
  for name in LOSSES:
    np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_attention_distillation_with_rematerialisation(remat, built):
  """The norms are those of the reading that the gradient goes through."""
  model, params = built
  model = dataclasses.replace(model, gold_score='attention', **PAPER)

  def step(model, params):
    total = lambda p: (lambda o: o.reader.total + o.retriever.total)(model.loss_fn(p, BATCH, None))
    value, gradient = _jit(jax.value_and_grad(total))(params)
    return float(value), float(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradient)))

  config = dataclasses.replace(model.reader_config, remat_policy=remat, scan_layers=remat == 'dots')
  other = dataclasses.replace(model, reader_config=config)
  other_params = params
  if config.scan_layers:
    other_params = {**params, 'reader': _scanned(params['reader'], config)}
  np.testing.assert_allclose(step(model, params), step(other, other_params), rtol=1e-4)


def _scanned(params, config):
  params = {**params}
  for stack, depth in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    part = dict(params[stack])
    rows = [part.pop(f'layers_{i}') for i in range(depth)]
    part['layers'] = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    params[stack] = part
  return params


@pytest.mark.parametrize('scan', [False, True])
def test_last_layers_alone(scan, built, peer):
  model, params = built
  config = model.reader_config
  if scan:
    config = dataclasses.replace(config, scan_layers=True)
    params = {**params, 'reader': _scanned(params['reader'], config)}
  model = dataclasses.replace(
    model, reader_config=config, gold_score='attention', gold_attention_layers=2
  )
  gold = _jit(lambda p: _gold_scores(model, p))(params)['attention']
  np.testing.assert_allclose(gold, _attention(peer, False, layers=(1, 2)), rtol=1e-4, atol=1e-6)


def _outputs_of(function, *args):
  """Shapes of everything a function computes, those inside of it included."""
  shapes = []

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      shapes.extend(v.aval.shape for v in equation.outvars)
      for sub in jax.extend.core.jaxprs_in_params(equation.params):
        walk(sub)

  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  # What no output needs is not computed by the compiled program either.
  walk(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])
  return shapes


def test_layers_that_do_not_count_compute_no_norms(built):
  """[batch, keys, heads], the norms, are needed once for each layer that counts."""
  model, params = built
  counts = []
  for layers in (1, 2, 3):
    counted = dataclasses.replace(model, gold_score='attention', gold_attention_layers=layers)
    shapes = _outputs_of(lambda p, m=counted: _gold_scores(m, p), params)
    counts.append(shapes.count((B, K * L, 4)))
  assert counts[1] - counts[0] == counts[2] - counts[1] > 0
  assert counts[0] == counts[1] - counts[0]


@pytest.mark.parametrize('name', LOSSES)
def test_encoder_runs_once_for_all(name, built, monkeypatch):
  """No loss encodes what the reader has encoded already."""
  model, params = built
  from ralm_jax.models import t5

  calls = []
  encode = t5.T5.encode
  monkeypatch.setattr(
    t5.T5,
    'encode',
    lambda self, tokens, *args, **kwargs: (
      calls.append(tokens.shape[0]),
      encode(self, tokens, *args, **kwargs),
    )[1],
  )
  model = dataclasses.replace(model, gold_score=name)
  jax.eval_shape(lambda p: model.loss_fn(p, BATCH, None), params)
  assert calls == [B * K]
  # Fewer read: the others are encoded for the gold scores alone.
  calls.clear()
  narrow = dataclasses.replace(model, n_context=1)
  jax.eval_shape(lambda p: narrow.loss_fn(p, BATCH, None), params)
  assert calls == [B, B * (K - 1)]


@pytest.mark.parametrize('name', LOSSES)
def test_masked_passages_teach_nothing(name, built):
  """A missing passage changes neither loss nor gradient, whatever it holds."""
  model, params = built
  mask = np.array(BATCH.passage_mask)
  mask[0, 1] = False
  batch = BATCH.replace(passage_mask=mask)
  noise = np.array(BATCH.retriever_tokens)
  noise[0, 1] = 7
  model = dataclasses.replace(model, gold_score=name, **PAPER)
  loss = _jit(jax.value_and_grad(lambda p, b: model.loss_fn(p, b, None).retriever.mean))
  value, gradient = loss(params, batch)
  other, other_gradient = loss(params, batch.replace(retriever_tokens=noise))
  np.testing.assert_allclose(value, other, rtol=1e-6)
  for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient)):
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_correlations_of_the_gold_scores(built):
  model, params = built
  chosen = dataclasses.replace(
    model, gold_score='perplexity', compared_gold_scores=('perplexity', 'leave_one_out')
  )
  metrics = _jit(lambda p: chosen.loss_fn(p, BATCH, None).metrics)(params)
  np.testing.assert_allclose(metrics['gold_correlation/perplexity-perplexity'].mean, 1.0, rtol=1e-5)
  gold = _jit(lambda p: _gold_scores(chosen, p))(params)
  expected = np.mean(
    [np.corrcoef(gold['perplexity'][b], gold['leave_one_out'][b])[0, 1] for b in range(B)]
  )
  np.testing.assert_allclose(
    metrics['gold_correlation/perplexity-leave_one_out'].mean, expected, atol=1e-5
  )


def test_norms_are_computed_only_where_asked_for(built):
  """Not by a reading whose collection is not mutable, and not at initialisation."""
  model, params = built
  reader = model.reader
  variables = jax.eval_shape(
    reader.init, jax.random.key(0), BATCH.reader_tokens, BATCH.reader_mask, BATCH.target_tokens
  )
  assert set(variables) == {'params'}
  counts = {}
  for name in ('perplexity', 'attention'):
    chosen = dataclasses.replace(model, gold_score=name)
    shapes = _outputs_of(lambda p, m=chosen: m.loss_fn(p, BATCH, None).retriever.total, params)
    counts[name] = shapes.count((B, K * L, 4))
  assert counts['perplexity'] < counts['attention']
