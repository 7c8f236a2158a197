"""Atlas checkpoints, written by PyTorch as the original writes them."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from ralm_jax.interop import atlas, tensor_maps
from ralm_jax.interop.files.torch_archive import TorchArchive
from ralm_jax.models import t5
from ralm_jax.models.dual_encoder import DualEncoder

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def reader_peer(**changes):
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      **{
        **dict(
          vocab_size=60,
          d_model=16,
          d_kv=4,
          d_ff=24,
          num_layers=2,
          num_decoder_layers=3,
          num_heads=2,
          dropout_rate=0.0,
          feed_forward_proj='gated-gelu',
          tie_word_embeddings=False,
        ),
        **changes,
      }
    )
  ).eval()
  if model.config.feed_forward_proj == 'gated-gelu':
    model.lm_head.weight = torch.nn.Parameter(
      torch.randn(model.config.vocab_size, model.config.d_model)
    )
  return model


def retriever_peer(seed=1):
  torch.manual_seed(seed)
  model = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=50,
      hidden_size=16,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=24,
      max_position_embeddings=20,
      hidden_dropout_prob=0.0,
      attention_probs_dropout_prob=0.0,
    ),
    add_pooling_layer=False,
  ).eval()
  for parameter in model.parameters():  # LayerNorms that matter.
    parameter.data = torch.randn_like(parameter) * 0.3
  return model


def state_of(reader, retrievers, module='') -> collections.OrderedDict:
  """The state dict of the original's Atlas module.

  Args:
    reader: a T5.
    retrievers: BERTs by the original's name.
    module: 'module.' as sharded runs have it.
  """
  state = collections.OrderedDict()
  for name, value in reader.state_dict().items():
    state[f'reader.{module}{name}'] = value
  # T5 shows its embedding under three names.
  for stack in ('encoder', 'decoder'):
    state[f'reader.{module}{stack}.embed_tokens.weight'] = reader.shared.weight.data
  for name, model in retrievers.items():
    prefix = f'retriever.{module}{name}.'
    state[f'{prefix}embeddings.position_ids'] = torch.arange(20)[None]
    for key, value in model.state_dict().items():
      state[prefix + key] = value
  state._metadata = {'': {'version': 1}}
  return state


def write(path: pathlib.Path, state, **changes) -> pathlib.Path:
  """Saves as the original's `save_atlas_model` does."""
  linear = torch.nn.Linear(2, 2)
  optimizer = torch.optim.AdamW(linear.parameters())
  linear(torch.ones(2)).sum().backward()
  optimizer.step()
  scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
  torch.save(
    {
      'step': 500,
      'model': state,
      'optimizer': optimizer.state_dict(),
      'retr_optimizer': None,
      'scheduler': scheduler.state_dict(),
      'retr_scheduler': None,
      'opt': argparse.Namespace(
        name='run',
        lr=1e-4,
        train_data=['a.jsonl'],
        device=torch.device('cpu'),
        checkpoint_dir=pathlib.Path('/tmp/x'),
        seed=np.int64(3),
      ),
      **changes,
    },
    path,
  )
  return path


def parts_of(source, model) -> dict:
  maps = atlas.entries(model)
  return {part: tensor_maps.read_all(source, entries) for part, entries in maps.items()}


def describe(source):
  return atlas.describe(source, retriever_heads=4)


def inputs(vocab_size, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, vocab_size, (2, 7)).astype(np.int32)
  return tokens, np.arange(7) < np.array([[7], [4]])


def reader_logits(peer, tokens, mask, decoder):
  with torch.no_grad():
    return peer(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(mask).long(),
      decoder_input_ids=torch.tensor(decoder).long(),
    ).logits.numpy()


def original_embeddings(peer, tokens, mask, uncentred: bool):
  """Mean pooling; LayerNorm as the original's `BertLayerNorm` computes it."""

  def layer_norm(self, x):
    centred = x - x.mean(-1, keepdim=True)
    second = (x if uncentred else centred).pow(2).mean(-1, keepdim=True)
    return self.weight * (centred * torch.rsqrt(second + self.eps)) + self.bias

  kept = torch.nn.LayerNorm.forward
  torch.nn.LayerNorm.forward = layer_norm
  try:
    with torch.no_grad():
      hidden = peer(torch.tensor(tokens).long(), torch.tensor(mask).long()).last_hidden_state
  finally:
    torch.nn.LayerNorm.forward = kept
  weights = torch.tensor(mask)[..., None].float()
  return ((hidden * weights).sum(1) / weights.sum(1)).numpy()


@pytest.mark.parametrize('module', ['', 'module.'])
@pytest.mark.parametrize('tied', [True, False])
def test_outputs_are_those_of_the_original(tmp_path, module, tied):
  reader = reader_peer()
  towers = (
    {'contriever': retriever_peer()}
    if tied
    else {'query_contriever': retriever_peer(1), 'passage_contriever': retriever_peer(2)}
  )
  write(tmp_path / 'model.pth.tar', state_of(reader, towers, module))
  source = atlas.open_checkpoint(tmp_path)
  assert not any('module.' in name for name in source)
  model = describe(source)
  assert model.tied == tied
  parts = parts_of(source, model)
  tokens, mask = inputs(60)
  decoder = np.pad(tokens, ((0, 0), (1, 0)))[:, :5]
  np.testing.assert_allclose(
    t5.T5(model.reader_config).apply({'params': parts['reader']}, tokens, mask, decoder),
    reader_logits(reader, tokens, mask, decoder),
    atol=1e-4,
  )

  tokens, mask = inputs(50)
  params = parts.get('retriever') or {
    side: parts[side] for side in ('query_encoder', 'passage_encoder')
  }
  encoder = DualEncoder(model.retriever_config, tied=tied)
  for method, name in (
    ('encode_queries', 'query_contriever'),
    ('encode_passages', 'passage_contriever'),
  ):
    peer = towers.get('contriever') or towers[name]
    found = encoder.apply({'params': params}, tokens, mask, method=method)
    expected = original_embeddings(peer, tokens, mask, uncentred=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # The other LayerNorm is another model.
    assert np.abs(expected - original_embeddings(peer, tokens, mask, False)).max() > 1e-2


def test_the_other_layer_norm(tmp_path):
  tower = retriever_peer()
  source = atlas.open_checkpoint(
    write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {'contriever': tower}))
  )
  model = describe(source)
  config = dataclasses.replace(model.retriever_config, second_moment_layer_norm=False)
  tokens, mask = inputs(50)
  found = DualEncoder(config).apply(
    {'params': parts_of(source, model)['retriever']}, tokens, mask, method='encode_queries'
  )
  np.testing.assert_allclose(found, original_embeddings(tower, tokens, mask, False), atol=1e-4)


def test_the_first_t5(tmp_path):
  """t5-base: relu, and the head is the embedding."""
  reader = reader_peer(feed_forward_proj='relu', tie_word_embeddings=True)
  source = atlas.open_checkpoint(write(tmp_path / 'model.pth.tar', state_of(reader, {})))
  model = describe(source)
  assert model.retriever_config is None
  assert model.reader_config.logits_via_embedding
  assert model.reader_config.mlp_activations == ('relu',)
  tokens, mask = inputs(60)
  np.testing.assert_allclose(
    t5.T5(model.reader_config).apply(
      {'params': parts_of(source, model)['reader']}, tokens, mask, tokens
    ),
    reader_logits(reader, tokens, mask, tokens),
    atol=1e-4,
  )


def test_every_tensor_is_used_or_a_copy(tmp_path):
  source = atlas.open_checkpoint(
    write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {'contriever': retriever_peer()}))
  )
  used = {entry.name for some in atlas.entries(describe(source)).values() for entry in some}
  assert set(source) - used == {
    'reader.encoder.embed_tokens.weight',
    'reader.decoder.embed_tokens.weight',
    'retriever.contriever.embeddings.position_ids',
  }
  np.testing.assert_array_equal(
    source['reader.decoder.embed_tokens.weight'], source['reader.shared.weight']
  )


def test_a_run_folder(tmp_path):
  for step in (5, 40):
    folder = tmp_path / 'checkpoint' / f'step-{step}'
    folder.mkdir(parents=True)
    write(folder / 'model.pth.tar', state_of(reader_peer(), {}))
  assert atlas.find(tmp_path).endswith('step-40/model.pth.tar')
  (tmp_path / 'checkpoint' / 'latest').symlink_to('step-5')
  assert atlas.find(tmp_path).endswith('latest/model.pth.tar')
  assert len(atlas.open_checkpoint(tmp_path)) > 0
  assert atlas.find(tmp_path / 'nothing') is None
  with pytest.raises(FileNotFoundError, match='does not exist'):
    atlas.open_checkpoint(tmp_path / 'nothing')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='holds no model.pth.tar'):
    atlas.open_checkpoint(tmp_path / 'empty')


def test_half_precision(tmp_path):
  reader = reader_peer().to(torch.bfloat16)
  source = atlas.open_checkpoint(write(tmp_path / 'model.pth.tar', state_of(reader, {})))
  name = 'reader.encoder.block.1.layer.1.DenseReluDense.wo.weight'
  assert source.info(name).dtype.name == 'bfloat16'
  np.testing.assert_array_equal(
    source[name].astype(np.float32),
    reader.encoder.block[1].layer[1].DenseReluDense.wo.weight.float().detach().numpy(),
  )


class Attack:
  """Pickles as a call."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('field', ['opt', 'optimizer', 'model'])
@pytest.mark.parametrize('function', [os.system, eval, getattr])
def test_nothing_is_run(tmp_path, field, function):
  touch = tmp_path / 'was_here'
  argument = {
    os.system: (f'touch {touch}',),
    eval: (f'__import__("os").system("touch {touch}")',),
    getattr: (os, 'system'),
  }[function]
  attack = Attack(function, argument)
  if function is getattr:  # A module cannot be pickled; its import can.
    attack = Attack(getattr, (Attack(__import__, ('os',)), 'system'))
  value = {field: {'x': attack}} if field == 'model' else {'model': {}, field: attack}
  torch.save(value, tmp_path / 'model.pth.tar')
  with pytest.raises(ValueError, match='nothing in the file was executed'):
    atlas.open_checkpoint(tmp_path)
  assert not touch.exists()


def test_options_are_not_looked_at(tmp_path):
  """A Namespace that would set attributes of its class sets nothing."""

  class Opcodes:
    def __reduce__(self):
      return (argparse.Namespace, (), {'__class__': 1, 'error': 2}, iter([3]), iter([('a', 4)]))

  write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {}), opt=Opcodes())
  assert len(atlas.open_checkpoint(tmp_path))
  assert not hasattr(argparse.Namespace, 'error')


def archive_of(content: bytes, path, **entries) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', content)
    for name, data in entries.items():
      archive.writestr(f'archive/data/{name[1:]}', data)
  return path


def tensor(numel=4, offset=0, shape=(2, 2), strides=(2, 1), key='0') -> bytes:
  """The pickle of one tensor whose description may lie."""

  class Storage:
    pass

  class Tensor:
    def __reduce__(self):
      return torch._utils._rebuild_tensor_v2, (
        Storage(),
        offset,
        shape,
        strides,
        False,
        collections.OrderedDict(),
      )

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      if isinstance(value, Storage):
        return 'storage', torch.FloatStorage, key, 'cuda:0', numel

  import io

  content = io.BytesIO()
  Pickler(content, 2).dump(Tensor())
  return content.getvalue()


def test_a_tensor_by_hand(tmp_path):
  data = np.arange(4, dtype=np.float32)
  archive = TorchArchive(archive_of(tensor(), tmp_path / 'a', _0=data.tobytes()))
  np.testing.assert_array_equal(archive.read(archive.value), data.reshape(2, 2))


@pytest.mark.parametrize(
  'lie',
  [
    dict(shape=(3, 2)),
    dict(offset=1),
    dict(strides=(1000, 1)),
    dict(offset=-1),
    dict(shape=(-1, 2)),
    dict(strides=(2, -1)),
    dict(strides=(1,)),
    dict(shape=(2.0, 2)),
  ],
)
def test_descriptions_that_lie(tmp_path, lie):
  path = archive_of(tensor(**lie), tmp_path / 'a', _0=b'\0' * 16)
  with pytest.raises(ValueError, match='a is damaged'):
    TorchArchive(path)


@pytest.mark.parametrize('lie', [dict(numel=100, shape=(10, 10), strides=(10, 1)), dict(key='1')])
def test_numbers_that_are_not_there(tmp_path, lie):
  archive = TorchArchive(archive_of(tensor(**lie), tmp_path / 'a', _0=b'\0' * 16))
  with pytest.raises(ValueError, match='does not hold the numbers'):
    archive.read(archive.value)


def test_torch_archives_in_general(tmp_path):
  """Views, transposes and types, against PyTorch."""
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  tensors = {
    'whole': base,
    'view': base[1:3, ::2],
    'transposed': base.t(),
    'expanded': base[:1].expand(3, 6),
    'half': base.half(),
    'bfloat16': base.bfloat16(),
    'double': base.double(),
    'long': base.long(),
    'bool': base > 3,
    'bytes': base.to(torch.uint8),
    'empty': base[:0],
    'number': torch.tensor(2.5),
    'parameter': torch.nn.Parameter(base),
    'slice': base[:, 1:3],
    'int': base.int(),
  }
  torch.save(tensors, tmp_path / 'tensors.pt')
  archive = TorchArchive(tmp_path / 'tensors.pt')
  assert set(archive.value) == set(tensors)
  for name, stored in archive.value.items():
    expected = tensors[name].detach()
    found = archive.read(stored)
    assert found.flags.c_contiguous
    assert stored.info.shape == found.shape == tuple(expected.shape)
    assert str(expected.dtype) == f'torch.{found.dtype.name}', name
    np.testing.assert_array_equal(found.astype(np.float64), expected.double().numpy(), name)


@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.6, 0.99])
def test_a_truncated_file(tmp_path, fraction):
  path = write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {}))
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * fraction)])
  with pytest.raises(ValueError, match='model.pth.tar is truncated'):
    atlas.open_checkpoint(tmp_path)


def test_other_files(tmp_path):
  path = tmp_path / 'model.pth.tar'
  torch.save({'model': {}}, path, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match='1.6'):
    atlas.open_checkpoint(path)
  torch.save([1, 2], path)
  with pytest.raises(ValueError, match='is no checkpoint of Atlas'):
    atlas.open_checkpoint(path)
  torch.save({'state_dict': {}}, path)
  with pytest.raises(ValueError, match="found .'state_dict'."):
    atlas.open_checkpoint(path)
  write(path, {'encoder.x': torch.zeros(3)})
  with pytest.raises(ValueError, match="no tensor 'reader.shared.weight'"):
    atlas.open_checkpoint(path)


def test_what_is_missing(tmp_path):
  state = state_of(reader_peer(), {'contriever': retriever_peer()})
  path = tmp_path / 'model.pth.tar'
  source = atlas.open_checkpoint(write(path, state))
  with pytest.raises(ValueError, match='retriever_heads'):
    atlas.describe(source)
  name = 'reader.encoder.block.0.layer.0.SelfAttention.q.weight'
  kept = state.pop(name)
  with pytest.raises(ValueError, match=f"no tensor '{name}'"):
    describe(atlas.open_checkpoint(write(path, state)))
  state[name] = kept
  for key in [key for key in state if 'decoder.block.1.' in key]:
    del state[key]
  with pytest.raises(ValueError, match=r'the layers \[0, 2\]'):
    describe(atlas.open_checkpoint(write(path, state)))
  only = state_of(reader_peer(), {'query_contriever': retriever_peer()})
  with pytest.raises(ValueError, match='one of queries and one of passages'):
    describe(atlas.open_checkpoint(write(path, only)))


def test_needs_no_torch(tmp_path):
  """And leaves it alone where it is installed."""
  write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {}))
  code = (
    'import sys\nfrom ralm_jax.interop import atlas\n'
    f'source = atlas.open_checkpoint({str(tmp_path)!r})\n'
    'assert source["reader.shared.weight"].shape == (60, 16)\n'
    'assert "torch" not in sys.modules'
  )
  subprocess.run(
    [sys.executable, '-c', code], check=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  )


def test_the_map_fits_our_model(tmp_path):
  source = atlas.open_checkpoint(
    write(tmp_path / 'model.pth.tar', state_of(reader_peer(), {'contriever': retriever_peer()}))
  )
  model = describe(source)
  tokens = np.ones((1, 3), np.int32)
  wanted = jax.eval_shape(
    t5.T5(model.reader_config).init, jax.random.key(0), tokens, tokens, tokens
  )['params']
  wanted = jax.tree.map(lambda x: x.value.shape, wanted, is_leaf=lambda x: hasattr(x, 'value'))
  found = jax.tree.map(lambda x: x.shape, parts_of(source, model)['reader'])
  assert found == wanted
