"""The copying initialisation changes what it says and nothing else."""

from flax import linen as nn
import jax
import numpy as np

from ralm_jax.models import copying_init
from ralm_jax.models.fid import FusionInDecoder
from ralm_jax.models.t5 import T5Config


def test_output_maps_undo_value_maps():
  config = T5Config(
    vocab_size=50,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=1,
    logits_via_embedding=True,
  )
  tokens = np.ones((1, 2, 5), np.int32)
  before = nn.meta.unbox(
    FusionInDecoder(config).init(jax.random.key(0), tokens, tokens, tokens[:, 0])['params']
  )
  after = copying_init.copying_init(before, jax.random.key(1))
  assert jax.tree.structure(before) == jax.tree.structure(after)
  values = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(after):
    names = [key.key for key in path]
    old = before
    for name in names:
      old = old[name]
    changed = not np.array_equal(old, leaf)
    assert changed == (names[-2] in ('value', 'out') or names[-1] == 'rel_embedding')
    if names[-2] == 'value':
      values.append(leaf)
      module = after
      for name in names[:-2]:
        module = module[name]
      np.testing.assert_allclose(leaf @ module['out']['kernel'], np.eye(32), atol=1e-5)
    if names[-1] == 'rel_embedding':
      assert 1.5 < np.std(leaf) < 2.5
  assert len(values) == 4
  assert not any(np.allclose(a, b) for i, a in enumerate(values) for b in values[:i])
