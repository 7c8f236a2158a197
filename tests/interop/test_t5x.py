"""T5X checkpoints in all their layouts, against what wrote them."""

from __future__ import annotations

import shutil

from flax import serialization, traverse_util
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from ralm_jax.interop import t5x, tensor_maps
from ralm_jax.interop.files.msgpack_tensors import MsgpackFile
from ralm_jax.models import t5
from ralm_jax.models.t5 import T5Config

CONFIG = T5Config(
  vocab_size=40,
  emb_dim=12,
  num_heads=2,
  head_dim=5,
  mlp_dim=16,
  num_encoder_layers=3,
  num_decoder_layers=2,
  relative_attention_num_buckets=8,
)
TIED = T5Config(
  vocab_size=40,
  emb_dim=12,
  num_heads=2,
  head_dim=5,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=2,
  mlp_activations=('relu',),
  logits_via_embedding=True,
)


def random_params(config: T5Config, seed: int = 0) -> dict:
  """Our tree, as T5X has it but for the place of the head."""
  tokens = np.ones((1, 3), np.int32)
  shapes = jax.eval_shape(t5.T5(config).init, jax.random.key(0), tokens, tokens, tokens)['params']
  rng = np.random.default_rng(seed)
  flat = traverse_util.flatten_dict(
    jax.tree.map(lambda x: x.value, shapes, is_leaf=lambda x: hasattr(x, 'value'))
  )
  return traverse_util.unflatten_dict(
    {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}
  )


def as_t5x(params: dict) -> dict:
  params = dict(params)
  if 'logits_dense' in params:
    params['decoder'] = {**params['decoder'], 'logits_dense': params.pop('logits_dense')}
  return params


def scanned(target: dict, axis: int) -> dict:
  """The same with the layers of each stack in one."""
  result = dict(target)
  for stack in ('encoder', 'decoder'):
    layers = [k for k in target[stack] if k.startswith('layers_')]
    rows = [target[stack][f'layers_{i}'] for i in range(len(layers))]
    result[stack] = {k: v for k, v in target[stack].items() if k not in layers}
    result[stack]['layers'] = jax.tree.map(lambda *leaves: np.stack(leaves, axis), *rows)
  return result


def state_of(target: dict) -> dict:
  """What T5X writes besides: Adafactor's moments, named like parameters."""
  moments = jax.tree.map(lambda x: {'v': np.zeros_like(x)}, target)
  return {'step': np.int32(1000), 'param_states': moments}


def write_legacy(path, target: dict):
  path.write_bytes(
    serialization.msgpack_serialize(
      {'version': 3, 'optimizer': {'target': target, 'state': state_of(target)}}
    )
  )
  return path


def write_native(folder, target: dict, driver='gfile', version=3, old=False):
  """Large arrays as zarr beside a msgpack of specifications, T5X's own layout."""
  folder.mkdir()

  def write(path, array):
    if array.ndim < 2:
      return array
    name = '.'.join(('target', *path))
    halves = [-(-size // 2) for size in array.shape]
    dtype = array.dtype.newbyteorder('<').str
    if array.dtype == ml_dtypes.bfloat16:
      dtype = 'bfloat16'
    metadata = {
      'compressor': {'id': 'gzip'},
      'shape': list(array.shape),
      'chunks': halves,
      'dtype': dtype,
    }
    store = tensorstore.open(
      {
        'driver': 'zarr',
        'metadata': metadata,
        'kvstore': {'driver': 'file', 'path': str(folder / name)},
      },
      create=True,
    ).result()
    store.write(array).result()
    if old:
      return {'driver': 'zarr', 'kvstore': {'driver': driver}, 'path': name, 'metadata': metadata}
    kvstore = {'driver': driver, 'path': name}
    if driver == 'gcs':
      kvstore['bucket'] = 't5x-dummy-bucket'
    return {'driver': 'zarr', 'kvstore': kvstore, 'metadata': metadata}

  flat = traverse_util.flatten_dict(target)
  target = traverse_util.unflatten_dict(
    {path: write(path, np.asarray(leaf)) for path, leaf in flat.items()}
  )
  (folder / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(
      {'version': version, 'optimizer': {'target': target, 'state': {'step': np.int32(7)}}}
    )
  )
  return folder


def loaded(path):
  source = t5x.open_checkpoint(path)
  config = t5x.t5_config(source)
  return config, tensor_maps.read_all(source, t5x.t5_entries(source, config))


def assert_same(found: dict, expected: dict) -> None:
  found, expected = map(traverse_util.flatten_dict, (found, expected))
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, str(path))


@pytest.mark.parametrize('config', [CONFIG, TIED], ids=['gated', 'tied'])
def test_legacy(tmp_path, config):
  params = random_params(config)
  found, tree = loaded(write_legacy(tmp_path / 'checkpoint_0', as_t5x(params)))
  assert found == config
  assert_same(tree, params)


@pytest.mark.parametrize('driver', ['file', 'gfile', 'gcs'])
def test_native(tmp_path, driver):
  params = random_params(CONFIG)
  folder = write_native(tmp_path / 'checkpoint_7', as_t5x(params), driver)
  assert len(list(folder.glob('target.*'))) > 40
  # The folder, the file in it, and the run all name it.
  for path in (folder, folder / 'checkpoint', tmp_path):
    config, tree = loaded(path)
    assert config == CONFIG
    assert_same(tree, params)


def test_native_of_the_oldest_kind(tmp_path):
  """Paths beside the kvstore, and bfloat16 as uint16."""
  params = random_params(CONFIG)
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
  bits = jax.tree.map(lambda x: x.view(np.uint16) if x.ndim > 1 else x, as_t5x(half))
  folder = write_native(tmp_path / 'old', bits, version=2, old=True)
  source = t5x.open_checkpoint(folder)
  assert source.info('token_embedder/embedding').dtype == ml_dtypes.bfloat16
  _, tree = loaded(folder)
  assert_same(tree, jax.tree.map(lambda x: x.astype(np.float32), half))


def test_bfloat16(tmp_path):
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), random_params(CONFIG))
  expected = jax.tree.map(lambda x: x.astype(np.float32), half)
  _, native = loaded(write_native(tmp_path / 'native', as_t5x(half)))
  _, legacy = loaded(write_legacy(tmp_path / 'legacy', as_t5x(half)))
  assert_same(native, expected)
  assert_same(legacy, expected)


ORBAX = {
  'ocdbt': dict(use_ocdbt=True, use_zarr3=False),
  'zarr3': dict(use_ocdbt=True, use_zarr3=True),
  'folders': dict(use_ocdbt=False),
}


@pytest.mark.parametrize('layout', ORBAX)
def test_orbax(tmp_path, layout):
  params = random_params(CONFIG)
  folder = tmp_path / 'checkpoint_3'
  target = as_t5x(params)
  ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**ORBAX[layout])).save(
    folder, {'target': target, 'state': state_of(target)}
  )
  source = t5x.open_checkpoint(folder)
  assert len(source) == len(jax.tree.leaves(params))
  config, tree = loaded(folder)
  assert config == CONFIG
  assert_same(tree, params)


@pytest.mark.parametrize(
  'wrap',
  [
    lambda target: {'params': target},
    lambda target: {'params': {'params': target}, 'step': np.int32(1)},
    lambda target: target,
  ],
)
def test_orbax_of_other_programs(tmp_path, wrap):
  params = random_params(TIED)
  with ocp.CheckpointManager(tmp_path / 'run') as manager:
    manager.save(5, args=ocp.args.StandardSave(wrap(params)))
    manager.wait_until_finished()
  for path in (tmp_path / 'run', tmp_path / 'run' / '5'):
    config, tree = loaded(path)
    assert config == TIED
    assert_same(tree, params)


def test_orbax_of_the_first_kind(tmp_path):
  """A msgpack tree that points at a folder an array."""
  params = random_params(CONFIG)
  folder = write_native(tmp_path / 'checkpoint_3', as_t5x(params))
  tree = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  flat = traverse_util.flatten_dict(tree['optimizer'], is_leaf=lambda _, x: 'driver' in x)
  (folder / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(
      traverse_util.unflatten_dict(
        {
          path: f'PLACEHOLDER://{".".join(path)}' if isinstance(leaf, dict) else leaf
          for path, leaf in flat.items()
        }
      )
    )
  )
  _, tree = loaded(folder)
  assert_same(tree, params)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('writer', ['legacy', 'native', 'orbax'])
def test_scanned_equals_unscanned(tmp_path, writer, axis):
  params = random_params(CONFIG)
  target = scanned(as_t5x(params), axis)
  path = tmp_path / 'checkpoint_0'
  if writer == 'orbax':
    ocp.PyTreeCheckpointer().save(path, {'target': target})
  else:
    {'legacy': write_legacy, 'native': write_native}[writer](path, target)
  config, tree = loaded(path)
  assert config == CONFIG
  assert_same(tree, params)


def test_as_many_layers_as_features(tmp_path):
  """Shapes do not tell the axis; T5X's default does."""
  config = T5Config(
    vocab_size=9,
    emb_dim=2,
    num_heads=1,
    head_dim=2,
    mlp_dim=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
  )
  params = random_params(config)
  _, tree = loaded(write_legacy(tmp_path / 'checkpoint_0', scanned(as_t5x(params), 1)))
  assert_same(tree, params)


@pytest.mark.parametrize('name', ['relpos_bias', 'relative_posemb'])
@pytest.mark.parametrize('scan', [False, True])
def test_a_table_a_layer(tmp_path, scan, name):
  """Equal tables are one; others are another architecture."""
  params = random_params(CONFIG)
  target = as_t5x(params)
  for stack in ('encoder', 'decoder'):
    table = target[stack].pop('relpos_bias')
    for layer in [k for k in target[stack] if k.startswith('layers_')]:
      target[stack][layer] = {**target[stack][layer], name: table}
  path = tmp_path / 'checkpoint_0'
  config, tree = loaded(write_legacy(path, scanned(target, 1) if scan else target))
  assert config == CONFIG
  for stack in ('encoder', 'decoder'):
    del params[stack]
    del tree[stack]['relpos_bias']
  last = target['encoder']['layers_2']
  last[name] = jax.tree.map(lambda x: x + 1, last[name])
  write_legacy(path, scanned(target, 1) if scan else target)
  with pytest.raises(ValueError, match='its own relative position table'):
    loaded(path)


def real(shared_data):
  path = shared_data / 't5x' / 'test_t5_tiny.checkpoint_0'
  if not path.exists():
    pytest.skip('the real checkpoint is not there')
  return path


def hugging_face_peer(target: dict, config: T5Config):
  """transformers' T5 with these weights, named by hand."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  peer = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.emb_dim,
      d_kv=config.head_dim,
      d_ff=config.mlp_dim,
      num_heads=config.num_heads,
      num_layers=config.num_encoder_layers,
      num_decoder_layers=config.num_decoder_layers,
      dropout_rate=0.0,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
    )
  ).eval()
  peer.lm_head.weight = torch.nn.Parameter(peer.lm_head.weight.clone())

  def put(module, array):
    with torch.no_grad():
      module.weight.copy_(torch.tensor(array.T))

  put(peer.shared, target['token_embedder']['embedding'].T)
  put(peer.lm_head, target['decoder']['logits_dense']['kernel'])
  for stack in ('encoder', 'decoder'):
    theirs, ours = getattr(peer, stack), target[stack]
    put(theirs.final_layer_norm, ours[f'{stack}_norm']['scale'])
    put(
      theirs.block[0].layer[0].SelfAttention.relative_attention_bias,
      ours['relpos_bias']['rel_embedding'],
    )
    attentions = (
      [('attention', 'pre_attention_layer_norm')]
      if (stack == 'encoder')
      else [
        ('self_attention', 'pre_self_attention_layer_norm'),
        ('encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
      ]
    )
    for i, block in enumerate(theirs.block):
      layer = ours[f'layers_{i}']
      for part, (name, norm) in zip(block.layer, attentions):
        module = getattr(part, 'SelfAttention', None) or part.EncDecAttention
        put(part.layer_norm, layer[norm]['scale'])
        for letter, kernel in zip('qkvo', ('query', 'key', 'value', 'out')):
          put(getattr(module, letter), layer[name][kernel]['kernel'])
      put(block.layer[-1].layer_norm, layer['pre_mlp_layer_norm']['scale'])
      for name in ('wi_0', 'wi_1', 'wo'):
        put(getattr(block.layer[-1].DenseReluDense, name), layer['mlp'][name]['kernel'])
  return peer


def test_the_real_checkpoint(shared_data):
  """T5X's own test model gives Hugging Face's logits."""
  path = real(shared_data)
  config, params = loaded(path)
  assert (config.vocab_size, config.emb_dim, config.num_heads) == (32128, 8, 4)
  assert (config.head_dim, config.mlp_dim) == (3, 16)
  assert (config.num_encoder_layers, config.num_decoder_layers) == (2, 2)
  assert config.mlp_activations == ('gelu', 'linear')
  assert not config.logits_via_embedding
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 32000, (2, 9)).astype(np.int32)
  mask = np.arange(9) < np.array([[9], [5]])
  targets = rng.integers(2, 32000, (2, 6)).astype(np.int32)
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  logits = np.asarray(t5.T5(config).apply({'params': params}, tokens, mask, inputs))
  assert logits.shape == (2, 6, 32128) and np.isfinite(logits).all()

  torch = pytest.importorskip('torch')
  whole = serialization.msgpack_restore(path.read_bytes())
  peer = hugging_face_peer(whole['optimizer']['target'], config)
  with torch.no_grad():
    expected = peer(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(mask),
      decoder_input_ids=torch.tensor(inputs).long(),
    ).logits.numpy()
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_msgpack_is_read_as_flax_reads_it(tmp_path, monkeypatch):
  value = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3),
    'long' * 20: [1, -1, None],
    'numbers': {str(n): n for n in (0, 127, 128, 70000, 2**40, -1, -40, -(2**40))},
    'other': {'f': 1.5, 'b': b'xy', 'yes': True, 's': 'é' * 300},
    'many': {str(i): i for i in range(70000)},
    'zero': np.zeros((0, 3)),
    'scalar': np.float32(2.5),
    'half': np.ones(3, ml_dtypes.bfloat16),
  }
  path = tmp_path / 'file'
  path.write_bytes(serialization.msgpack_serialize(value))
  file = MsgpackFile(path)
  assert {k: file.tree[k] for k in ('long' * 20, 'numbers', 'many')} == {
    k: value[k] for k in ('long' * 20, 'numbers', 'many')
  }
  assert file.tree['other']['s'] == value['other']['s']
  for name in ('a', 'zero', 'scalar', 'half'):
    found = file.read(file.tree[name])
    assert found.dtype == value[name].dtype and found.shape == value[name].shape
    np.testing.assert_array_equal(found, value[name])
  # What Flax cuts into pieces above 1 GB.
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 40)
  big = np.arange(35, dtype=np.float32).reshape(5, 7)
  path.write_bytes(serialization.msgpack_serialize({'x': {'big': big}}))
  assert b'__msgpack_chunked_array__' in path.read_bytes()
  file = MsgpackFile(path)
  assert len(file.tree['x']['big'].pieces) == 4
  np.testing.assert_array_equal(file.read(file.tree['x']['big']), big)


@pytest.mark.parametrize('fraction', [0.02, 0.5, 0.999])
def test_a_truncated_msgpack(tmp_path, fraction):
  path = write_legacy(tmp_path / 'checkpoint_0', as_t5x(random_params(TIED)))
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * fraction)])
  with pytest.raises(ValueError, match='checkpoint_0 is truncated'):
    t5x.open_checkpoint(path)
  path.write_bytes(content + b'\0')
  with pytest.raises(ValueError, match='1 bytes follow its end'):
    t5x.open_checkpoint(path)


def test_damaged_tensors(tmp_path):
  params = as_t5x(random_params(CONFIG))
  folder = write_native(tmp_path / 'checkpoint_0', params)
  source = t5x.open_checkpoint(folder)
  embedding = folder / 'target.token_embedder.embedding'
  (embedding / '1.0').unlink()
  with pytest.raises(ValueError, match=r'embedding/1\.0 does not exist'):
    source['token_embedder/embedding']
  (embedding / '1.0').write_bytes((embedding / '0.0').read_bytes()[:20])
  with pytest.raises(ValueError, match='token_embedder.embedding is missing or'):
    source['token_embedder/embedding']
  shutil.rmtree(embedding)
  fresh = t5x.open_checkpoint(folder)
  with pytest.raises(ValueError, match='token_embedder.embedding is missing or'):
    fresh.info('token_embedder/embedding')
  # Each tensor is read by itself.
  np.testing.assert_array_equal(
    fresh['decoder/logits_dense/kernel'], params['decoder']['logits_dense']['kernel']
  )


def test_a_damaged_database(tmp_path):
  folder = tmp_path / 'checkpoint_0'
  ocp.PyTreeCheckpointer().save(folder, {'target': as_t5x(random_params(CONFIG))})
  for path in folder.rglob('d/*'):
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match='missing or damaged'):
    loaded(folder)
  (folder / '_METADATA').write_text('{"tree_metadata": {"x": {}}}')
  with pytest.raises(ValueError, match='_METADATA is damaged'):
    t5x.open_checkpoint(folder)


@pytest.mark.parametrize('name', ['../secret', '/etc/passwd', '', 7, 'a/../../b'])
def test_no_tensor_outside_the_checkpoint(tmp_path, name):
  (tmp_path / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(
      {
        'target': {
          'encoder': {'x': {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': name}}}
        }
      }
    )
  )
  with pytest.raises(ValueError, match='expected a folder beside it'):
    t5x.open_checkpoint(tmp_path)


def test_what_is_no_t5x_checkpoint(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "t5"}')
  assert t5x.open_checkpoint(tmp_path) is None
  assert t5x.open_checkpoint(tmp_path / 'config.json') is None
  (tmp_path / 'empty').touch()
  assert t5x.open_checkpoint(tmp_path / 'empty') is None
  (tmp_path / 'model.bin').write_bytes(b'PK\x03\x04rest')
  assert t5x.open_checkpoint(tmp_path / 'model.bin') is None
  with pytest.raises(FileNotFoundError, match='nothing does not exist'):
    t5x.open_checkpoint(tmp_path / 'nothing')
  (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"')
  with pytest.raises(ValueError, match='of a TensorFlow checkpoint'):
    t5x.open_checkpoint(tmp_path)


def test_another_architecture(tmp_path):
  path = tmp_path / 'checkpoint_0'
  write_legacy(path, {'bert': {'x': np.zeros(3)}})
  with pytest.raises(ValueError, match='holds no parameters of a T5'):
    t5x.open_checkpoint(path)
  params = as_t5x(random_params(CONFIG))
  del params['decoder']
  write_legacy(path, params)
  with pytest.raises(ValueError, match='no decoder/layers_0'):
    loaded(path)
  params = as_t5x(random_params(CONFIG))
  del params['encoder']['layers_1']
  write_legacy(path, params)
  with pytest.raises(ValueError, match='no encoder/layers_1, but'):
    loaded(path)
  params = as_t5x(random_params(CONFIG))
  del params['decoder']['layers_1']['mlp']['wo']
  write_legacy(path, params)
  with pytest.raises(ValueError, match="no tensor 'decoder/layers_1/mlp/wo/kernel'"):
    loaded(path)
