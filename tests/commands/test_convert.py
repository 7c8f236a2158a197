"""`ralm convert`: foreign checkpoints to runs and to Hugging Face, and back."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import torch

from ralm_jax import cli
from ralm_jax.data.text import vocabularies
from ralm_jax.interop import huggingface, huggingface_export, initial_weights
from ralm_jax.interop.run_source import RunSource
from ralm_jax.models import fid
from ralm_jax.runs import opening
from ralm_jax.training.partitioning import Partitioner
from tests import tiny
from tests.commands import converting
from tests.commands.converting import TEXT, Opened, assert_equal, convert, converted, folders


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return converting.make(tmp_path_factory.mktemp('sources'))


@pytest.mark.parametrize('scan', [False, True])
def test_a_run_of_two_folders(scan, sources, tmp_path):
  convert(
    tmp_path / 'run', f'reader={sources}/t5', sources / 'bert', scan_layers=scan, dtype='bfloat16'
  )
  opened = opening.open_checkpoint(tmp_path / 'run', Partitioner(num_partitions=2))
  model = opened.spec.model
  assert model.reader_config.dtype == model.retriever_config.dtype == 'bfloat16'
  assert model.reader_config.scan_layers == scan
  expected = initial_weights.from_huggingface(f'{sources}/t5', f'{sources}/bert', scan_layers=scan)
  assert_equal(jax.tree.map(np.asarray, opened.params), expected)
  own = opened.spec.tokenizer.reader_vocabulary
  assert own.path.parent == tmp_path / 'run' / 'vocabularies'
  assert own.encode('the colour') == vocabularies.load_vocabulary(
    sources / 't5' / 'spiece.model'
  ).encode('the colour')
  assert opened.spec.text.n_passages == 3
  # Shards, not copies: the mesh's model axis halves the embedding.
  embedding = opened.params['reader']['token_embedder']['embedding']
  assert embedding.addressable_shards[0].data.shape == (128, 16)


def test_the_commands_use_it(sources, tmp_path, capsys):
  """A corpus is embedded by it, and questions are answered."""
  data = tiny.Data(sources / 'data')
  run, index = str(tmp_path / 'run'), str(tmp_path / 'index')
  assert (
    cli.main(
      [
        'convert',
        '--from',
        f'reader={sources}/t5',
        f'{sources}/bert',
        '--to',
        run,
        '--text',
        *(f'{k}={v}' for k, v in TEXT.items()),
      ]
    )
    == 0
  )
  assert 'INITIAL_CHECKPOINT_PATH' in capsys.readouterr().out
  assert (
    cli.main(['embed', '--checkpoint', run, '--corpus', str(data.corpus), '--output', index]) == 0
  )
  out = tmp_path / 'out'
  assert (
    cli.main(
      [
        'eval',
        '--checkpoint',
        run,
        '--index',
        index,
        '--questions',
        str(data.questions),
        '--output',
        str(out),
      ]
    )
    == 0
  )
  assert len((out / 'predictions.jsonl').read_text().splitlines()) == tiny.COUNT


def test_there_and_back_again(sources, tmp_path, scan=True):
  """Foreign to ours to foreign to ours: identical bytes."""
  convert(tmp_path / 'run', f'reader={sources}/t5', f'retriever={sources}/bert', scan_layers=scan)
  convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface', max_shard_bytes=20_000)
  assert sorted(os.listdir(tmp_path / 'out')) == ['reader', 'retriever']
  assert len(list((tmp_path / 'out' / 'reader').glob('*.safetensors'))) > 1
  convert(
    tmp_path / 'again',
    f'reader={tmp_path}/out/reader',
    f'retriever={tmp_path}/out/retriever',
    scan_layers=scan,
  )
  first, again = (RunSource(tmp_path / n) for n in ('run', 'again'))
  assert sorted(first) == sorted(again)
  for name in first:
    assert first[name].tobytes() == again[name].tobytes(), name
  specs = [json.loads((tmp_path / n / 'model.json').read_text()) for n in ('run', 'again')]
  assert specs[0] == specs[1]
  # transformers reads what is in between, with the same weights.
  peer = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'out' / 'reader')
  original = transformers.T5ForConditionalGeneration.from_pretrained(sources / 't5')
  for (name, ours), theirs in zip(peer.state_dict().items(), original.state_dict().values()):
    assert torch.equal(ours, theirs), name


@pytest.mark.slow
def test_a_run_with_other_layers(sources, tmp_path):
  """A run is a source like any other: scanned layers can be taken apart."""
  convert(tmp_path / 'one', f'reader={sources}/t5', sources / 'bert', scan_layers=True)
  convert(tmp_path / 'two', tmp_path / 'one', scan_layers=False, text={})
  convert(tmp_path / 'flat', f'reader={sources}/t5', sources / 'bert')
  two, flat = (RunSource(tmp_path / n) for n in ('two', 'flat'))
  assert sorted(two) == sorted(flat)
  assert all(np.array_equal(two[name], flat[name]) for name in two)
  assert Opened(tmp_path / 'two').spec.text.n_passages == 3


def test_rag_with_dpr(sources, tmp_path):
  run = tmp_path / 'run'
  with pytest.raises(ValueError, match='no passage_encoder .*--from passage_encoder=PATH'):
    convert(run, sources / 'rag')
  # A vocabulary of 64 rows in the encoder; the towers must be alike.
  with pytest.raises(
    ValueError, match=(r'differ in their configuration: vocab_size 64 and 128; give two')
  ):
    convert(run, sources / 'rag', f'passage_encoder={sources}/context')
  convert(run, sources / 'rag', sources / 'context', f'query_encoder={sources}/question')
  opened = Opened(run)
  model, text = opened.spec.model, opened.spec.text
  assert (model.reading, model.pooling, model.tied_retriever) == ('rag_sequence', 'cls', False)
  assert model.score_divisor == 1 and model.gold_score == 'none'
  assert text.retriever_format == '{title} [SEP] {text}'
  towers = opened.params['retriever']
  assert_equal(towers['query_encoder'], huggingface.load_dpr(sources / 'question')[1])
  assert_equal(towers['passage_encoder'], huggingface.load_dpr(sources / 'context')[1])
  assert_equal(
    opened.params['reader'], huggingface.open_rag(sources / 'rag').parts['reader'].read()
  )
  convert(tmp_path / 'out', run, to_format='huggingface')
  assert sorted(os.listdir(tmp_path / 'out')) == ['passage_encoder', 'query_encoder', 'reader']
  assert_equal(
    huggingface.load_dpr(tmp_path / 'out' / 'passage_encoder')[1], towers['passage_encoder']
  )


def test_bart(sources, tmp_path):
  convert(
    tmp_path / 'run',
    sources / 'bart',
    sources / 'question',
    sources / 'context',
    scan_layers=True,
    reading='rag_token',
  )
  opened = Opened(tmp_path / 'run')
  model, text = opened.spec.model, opened.spec.text
  assert model.reader_config.forced_last_id == 2 and model.reading == 'rag_token'
  assert text.reader_format == '{title} / {text} // {query}'
  expected = huggingface.load_bart(sources / 'bart')[1]
  expected |= {
    stack: initial_weights.stack_layers(expected[stack]) for stack in ('encoder', 'decoder')
  }
  assert_equal(opened.params['reader'], expected)
  convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')
  reader = tmp_path / 'out' / 'reader'
  assert (reader / 'tokenizer.json').is_file()
  peer = transformers.BartForConditionalGeneration.from_pretrained(reader)
  original = transformers.BartForConditionalGeneration.from_pretrained(sources / 'bart')
  for (name, ours), theirs in zip(peer.state_dict().items(), original.state_dict().values()):
    assert torch.equal(ours, theirs), name


def _edited(sources, tmp_path, name, edit):
  """A copy of a folder whose tensors are changed by `edit(dict)`."""
  from safetensors import numpy as files

  folder = tmp_path / f'edited_{name}'
  shutil.copytree(sources / name, folder)
  state = files.load_file(folder / 'model.safetensors')
  edit(state)
  files.save_file(state, folder / 'model.safetensors', {'format': 'pt'})
  return folder


def test_missing_tensors(sources, tmp_path):
  name = 'encoder.layer.1.output.dense.weight'
  bert = _edited(sources, tmp_path, 'bert', lambda state: state.pop(name))
  arguments = (tmp_path / 'run', f'reader={sources}/t5', bert)
  with pytest.raises(ValueError, match=f'missing: {name} of .*--allow_missing'):
    convert(*arguments)
  dry = converted(tmp_path / 'run', sources / 't5', bert, dry_run=True)
  assert any('missing: ' + name in line for line in dry.lines)
  assert 'Tensors are missing' in dry.failure
  assert not (tmp_path / 'run').exists()
  convert(*arguments, allow_missing=True, scan_layers=True)
  params = Opened(tmp_path / 'run').params['retriever']
  _, expected = huggingface.load_bert(sources / 'bert')
  for layer in (0, 1):
    kernel = params['layers']['mlp']['wo']['kernel'][layer]
    same = np.array_equal(kernel, expected[f'layers_{layer}']['mlp']['wo']['kernel'])
    assert same == (layer == 0)
    assert 0 < np.std(kernel) < 1


def test_leftover_tensors(sources, tmp_path):
  t5 = _edited(
    sources,
    tmp_path,
    't5',
    lambda state: state.update(
      {
        'encoder.block.3.layer.0.SelfAttention.q.weight': np.ones((8, 16), np.float32),
        'encoder.embed_tokens.weight': state['shared.weight'].copy(),
        'decoder.embed_tokens.weight': state['shared.weight'] + 1,
      }
    ),
  )
  arguments = (tmp_path / 'run', f'reader={t5}', sources / 'bert')
  with pytest.raises(ValueError, match='left over: .*--allow_unused') as e:
    convert(*arguments)
  # A copy that is one is no error, a copy that is none is.
  assert 'decoder.embed_tokens.weight' in str(e.value)
  assert 'encoder.block.3.layer.0' in str(e.value)
  assert 'encoder.embed_tokens' not in str(e.value)
  lines = convert(*arguments, allow_unused=True)
  assert any('a copy of shared.weight' in line for line in lines)
  assert any('the pooler' in line for line in lines)
  assert (tmp_path / 'run' / 'checkpoint_0').is_dir()


def test_other_shapes(sources, tmp_path):
  t5 = _edited(
    sources,
    tmp_path,
    't5',
    lambda state: state.update(
      {'decoder.block.0.layer.2.DenseReluDense.wo.weight': np.ones((16, 25), 'f')}
    ),
  )
  with pytest.raises(ValueError, match=r'wo.weight. has shape \(16, 25\), expected \(16, 24\)'):
    convert(tmp_path / 'run', f'reader={t5}', sources / 'bert', allow_missing=True)


def test_vocabularies(sources, tmp_path):
  t5 = tmp_path / 't5'
  shutil.copytree(sources / 't5', t5)
  (t5 / 'spiece.model').unlink()
  with pytest.raises(ValueError, match='--reader_vocabulary'):
    convert(tmp_path / 'run', t5, sources / 'bert')
  data = tiny.Data(sources / 'data')
  with pytest.raises(ValueError, match='The retriever vocabulary .*reader.model has'):
    convert(
      tmp_path / 'run',
      t5,
      f'retriever={sources}/bert',
      reader_vocabulary=str(data.reader_vocabulary),
      retriever_vocabulary=str(data.reader_vocabulary),
    )
  convert(tmp_path / 'run', t5, sources / 'bert', reader_vocabulary=str(data.reader_vocabulary))
  assert sorted(os.listdir(tmp_path)) == ['run', 't5']


@pytest.mark.slow
def test_checksums(sources, tmp_path):
  import hashlib

  t5 = tmp_path / 't5'
  shutil.copytree(sources / 't5', t5)
  weights = t5 / 'model.safetensors'
  right = hashlib.sha256(weights.read_bytes()).hexdigest()
  note = t5 / '.cache' / 'huggingface' / 'download' / 'model.safetensors.metadata'
  note.parent.mkdir(parents=True)
  wrong = right[:-1] + ('0' if right[-1] != '0' else '1')

  def attempt(name, **options):
    convert(tmp_path / name, t5, sources / 'bert', **options)

  note.write_text(f'0123\n{wrong}\n1.0\n')
  with pytest.raises(ValueError, match=f'SHA-256 {right}, expected {wrong} by'):
    attempt('run')
  attempt('unverified', verify=False)
  note.write_text(f'0123\n{right}\n1.0\n')
  (t5 / 'SHA256SUMS').write_text(f'{right} *model.safetensors\n')
  attempt('run')
  (t5 / 'SHA256SUMS').write_text(f'{wrong}  ./model.safetensors\n')
  with pytest.raises(ValueError, match='by .*SHA256SUMS'):
    attempt('again')
  (t5 / 'SHA256SUMS').unlink()
  # The hub's cache, where a link leads to a file named by its content.
  blob = tmp_path / 'blobs' / wrong
  blob.parent.mkdir()
  shutil.move(weights, blob)
  weights.symlink_to(blob)
  with pytest.raises(ValueError, match='its name in the cache'):
    attempt('again')


def test_sentence_transformers(sources, tmp_path):
  folder = tmp_path / 'minilm'
  folders.sentence_transformer(folder)
  with pytest.raises(ValueError, match='--retriever_vocabulary'):
    convert(tmp_path / 'run', sources / 't5', folder)
  shutil.copy(tiny.Data(sources / 'data').retriever_vocabulary, folder / 'vocab.txt')
  with pytest.raises(ValueError, match='vocab.txt has .* the retriever model only 64'):
    convert(tmp_path / 'run', sources / 't5', folder)
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the']
  (folder / 'vocab.txt').write_text('\n'.join(pieces))
  convert(tmp_path / 'run', sources / 't5', folder)
  first = Opened(tmp_path / 'run')
  assert first.spec.model.normalize_embeddings
  assert first.spec.model.pooling == 'mean'
  # Normalised embeddings survive the way out and in again.
  convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')
  convert(tmp_path / 'again', f'reader={tmp_path}/out/reader', tmp_path / 'out' / 'retriever')
  again = Opened(tmp_path / 'again')
  assert again.spec.model == first.spec.model
  assert_equal(again.params, first.params)


def test_t5x(shared_data, tmp_path):
  real = shared_data / 't5x' / 'test_t5_tiny.checkpoint_0'
  text = '\n'.join(convert(tmp_path / 'out', real, dry_run=True))
  assert 'T5X checkpoint (reader)' in text and '0 missing, 0 tensors left over' in text
  convert(tmp_path / 'out', real, to_format='huggingface')
  from ralm_jax.interop import t5x

  source = t5x.open_checkpoint(real)
  _, params = huggingface.load_t5(tmp_path / 'out' / 'reader')
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'], source['token_embedder/embedding']
  )
  peer = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / 'out' / 'reader').eval()
  config = t5x.t5_config(source)
  tokens, mask = folders.batch()
  targets, _ = folders.batch(length=5)
  with torch.no_grad():
    expected = peer(
      input_ids=folders.long(tokens),
      attention_mask=folders.long(mask),
      decoder_input_ids=folders.long(targets),
    ).logits
  actual = fid.make_reader(config).apply(
    {'params': params}, tokens[:, None], mask[:, None], targets
  )
  np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('tied', [True, False])
def test_atlas(tied, sources, tmp_path, monkeypatch):
  reader = transformers.T5ForConditionalGeneration.from_pretrained(sources / 't5')
  state = {f'reader.module.{k}': v for k, v in reader.state_dict().items()}
  towers = ['contriever'] if tied else ['query_contriever', 'passage_contriever']
  for i, tower in enumerate(towers):
    state |= {
      f'retriever.{tower}.{k}': v
      for k, v in folders.bert(i, vocab_size=128).state_dict().items()
      if 'pooler' not in k
    }
    state[f'retriever.{tower}.embeddings.position_ids'] = torch.arange(32)[None]
  torch.save({'step': 3, 'model': state, 'opt': {}}, tmp_path / 'model.pth.tar')
  data = tiny.Data(sources / 'data')
  options = dict(
    retriever_heads=2,
    reader_vocabulary=str(data.reader_vocabulary),
    retriever_vocabulary=str(data.retriever_vocabulary),
  )
  convert(
    tmp_path / 'run',
    tmp_path / 'model.pth.tar',
    **{**options, 'text': {'retriever_passage_length': 32, 'query_length': 32}},
  )
  opened = Opened(tmp_path / 'run')
  model = opened.spec.model
  assert model.retriever_config.second_moment_layer_norm
  assert (model.tied_retriever, model.pooling, model.reading) == (tied, 'mean', 'fusion')
  assert opened.spec.text.n_passages == 40
  assert opened.spec.text.passage_length == 384
  first = opened.params['retriever'] if tied else opened.params['retriever']['query_encoder']
  assert_equal(first, huggingface.load_bert(sources / 'bert')[1])
  assert_equal(opened.params['reader'], huggingface.load_t5(sources / 't5')[1])
  convert(tmp_path / 'standard', tmp_path, layer_norm='standard', **options)
  spec = Opened(tmp_path / 'standard').spec
  assert not spec.model.retriever_config.second_moment_layer_norm
  monkeypatch.setattr(huggingface_export, 'write', None)  # Not even the reader.
  with pytest.raises(ValueError, match="released Atlas code's LayerNorm"):
    convert(tmp_path / 'out', tmp_path / 'run', to_format='huggingface')


def test_a_killed_conversion_leaves_nothing_that_looks_whole(sources, tmp_path):
  run = tmp_path / 'run'
  # Halts when half of the weights are written, and waits to be killed.
  script = f"""
import signal, sys
from ralm_jax.interop import convert, conversion_writers as writers
read, count = writers.tensor_maps.read, 0
def halting(*args, **kwargs):
  global count
  count += 1
  if count == 40:
    print('halfway', flush=True)
    signal.pause()
  return read(*args, **kwargs)
writers.tensor_maps.read = halting
convert.convert([(None, {str(sources / 't5')!r}), (None, {str(sources / 'bert')!r})],
                {str(run)!r}, overrides=convert.Overrides(text={TEXT!r}), progress=False)
"""
  process = subprocess.Popen(
    [sys.executable, '-c', script], stdout=subprocess.PIPE, env=tiny.environment(1)
  )
  assert process.stdout.readline() == b'halfway\n'
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not run.exists()
  assert len(os.listdir(tmp_path)) == 1
  convert(run, sources / 't5', sources / 'bert')
  assert os.listdir(tmp_path) == ['run']
  Opened(run)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own of 64 kilobytes."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = (
    os.geteuid() == 0
    and subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(folder)], capture_output=True
    ).returncode
    == 0
  )
  if not mounted:
    pytest.skip('no permission to mount a small file system')
  yield folder
  subprocess.run(['umount', '-l', str(folder)], check=True)


def test_full_disk(sources, small_disk):
  with pytest.raises(OSError, match='No space left on device'):
    convert(small_disk / 'run', sources / 't5', sources / 'bert')
  assert not os.listdir(small_disk)
  with pytest.raises(OSError, match='No space left on device'):
    convert(small_disk / 'out', sources / 't5', to_format='huggingface')
  assert not os.listdir(small_disk)


def test_indexes(sources, tmp_path, capsys):
  """Both kinds, through the command."""
  data = tiny.Data(sources / 'data')
  passages = tiny.passages()
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((len(passages), 16)).astype(np.float16)
  atlas = tmp_path / 'atlas'
  atlas.mkdir()
  torch.save(torch.tensor(vectors.T.copy()), atlas / 'embeddings.0.pt')
  with open(atlas / 'passages.0.pt', 'wb') as file:
    pickle.dump(passages, file)
  with open(tmp_path / 'passages_00', 'wb') as file:
    pickle.dump(([p['id'] for p in passages], vectors), file)
  corpus, index = tmp_path / 'corpus', tmp_path / 'index'
  command = ['convert', '--from', f'atlas_index={atlas}', '--to', str(index)]
  assert cli.main(command) == 1
  assert '--from atlas_index= needs --to_corpus' in capsys.readouterr().err
  assert (
    cli.main(
      [
        *command,
        '--to_corpus',
        str(corpus),
        '--reader_vocabulary',
        str(data.reader_vocabulary),
        '--retriever_vocabulary',
        str(data.retriever_vocabulary),
      ]
    )
    == 0
  )
  assert (
    cli.main(
      [
        'convert',
        '--from',
        f'embeddings={tmp_path}/passages_*',
        '--to',
        str(tmp_path / 'second'),
        '--corpus',
        str(corpus),
      ]
    )
    == 0
  )
  assert capsys.readouterr().out.count('of 40 passages, 16 dimensions') == 2
