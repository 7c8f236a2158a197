"""`ralm convert`: what goes together, what is refused, and what is foretold."""

import os
import shutil

import numpy as np
import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from ralm_jax import cli
from ralm_jax.commands import convert as convert_lib
from ralm_jax.data import text_config
from ralm_jax.interop import composing, huggingface, part
from tests.commands import converting
from tests.commands.converting import TEXT, Opened, convert, converted
from tests.interop import huggingface_folders as folders


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return converting.make(tmp_path_factory.mktemp('sources'))


@pytest.fixture(scope='module')
def rag_run(sources, tmp_path_factory):
  """RAG with DPR as a run, its lengths those of nobody else."""
  run = tmp_path_factory.mktemp('rag') / 'run'
  convert(
    run,
    sources / 'rag',
    sources / 'context',
    f'query_encoder={sources}/question',
    text=TEXT | {'n_passages': 4, 'query_length': 31},
  )
  return run


def plan(*paths, text=None):
  """The model and the texts of a conversion that is not run."""
  gathered = composing.gather([convert_lib.parse_source(str(path)) for path in paths])
  return composing.make_model(gathered), composing.make_text(gathered, text or {})


def dry(to, *paths, **options):
  return converted(to, *paths, dry_run=True, **options)


def test_dry_run(sources, tmp_path):
  lines = convert(
    tmp_path / 'run', sources / 'rag', f'retriever={sources}/bert', dry_run=True, scan_layers=True
  )
  assert not (tmp_path / 'run').exists()
  text = '\n'.join(lines)
  assert 'Hugging Face RAG (reader, query_encoder)' in text
  assert (
    'rag.generator.encoder.block.2.layer.0.SelfAttention.q.weight '
    'float32[8, 16] -> reader/encoder/layers/attention/query/kernel[2] '
    '[16, 8], transposed'
  ) in text
  # Replaced by what was named; a part of the checkpoint, so nothing is left over.
  assert '-> retriever/query_encoder' not in text
  assert '0 missing, 0 tensors left over' in text


def test_what_is_refused(sources, tmp_path):
  run = tmp_path / 'run'
  for paths, message in (
    ([sources / 't5'], 'there is no retriever .*--from retriever=PATH'),
    ([sources / 'bert'], 'there is no reader'),
    ([sources / 't5', f'retriever={sources}/t5'], 'T5, expected a BERT encoder'),
    ([sources / 't5', sources / 't5'], 'Two checkpoints bring a reader'),
    (
      [sources / 't5', f'retriever={sources}/bert', f'query_encoder={sources}/bert'],
      'one tower for queries and passages',
    ),
    ([f'passage_encoder={sources}/rag'], 'Hugging Face RAG. has no passage_encoder'),
    ([sources / 'data'], 'no checkpoint: expected a MODEL_DIR'),
    (['writer=/somewhere'], "'writer' is no part"),
  ):
    with pytest.raises(ValueError, match=message):
      convert(run, *paths)
  with pytest.raises(FileNotFoundError, match='does not exist; expected a MODEL_DIR'):
    convert(run, tmp_path / 'nothing')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  with pytest.raises(FileExistsError, match='exists already'):
    convert(tmp_path / 'full', sources / 't5', sources / 'bert')
  with pytest.raises(ValueError, match='--text n_pasages=3: expected FIELD=VALUE'):
    text_config.parse_fields(['n_pasages=3'])
  assert sorted(os.listdir(tmp_path)) == ['full']


def test_a_missing_tower_is_initialised(sources, tmp_path):
  lines = convert(
    tmp_path / 'run', f'reader={sources}/t5', sources / 'question', allow_missing=True
  )
  assert any(
    'missing: the whole passage_encoder (initialised at random; do not '
    'embed a corpus with it)' in line
    for line in lines
  )
  count = len(huggingface.open_dpr(sources / 'question').entries)
  assert f'{count} missing, ' in lines[-2]
  towers = Opened(tmp_path / 'run').params['retriever']
  spread = {side: np.std(tower['token_embedder']['embedding']) for side, tower in towers.items()}
  assert 0.15 < spread['query_encoder'] < 0.3  # As `folders` made it.
  assert 0.01 < spread['passage_encoder'] < 0.03  # BertConfig's initialisation.


@pytest.mark.slow
def test_one_part_of_a_run(sources, tmp_path):
  """It brings its vocabulary along."""
  convert(tmp_path / 'one', sources / 't5', sources / 'bert')
  convert(
    tmp_path / 'two',
    f'reader={tmp_path}/one/checkpoint_0',
    f'query_encoder={sources}/question',
    f'passage_encoder={sources}/context',
  )
  opened = Opened(tmp_path / 'two')
  assert not opened.spec.model.tied_retriever
  assert opened.spec.model.pooling == 'cls'
  converting.assert_equal(opened.params['reader'], huggingface.load_t5(sources / 't5')[1])
  # In a whole run a retriever can be replaced, and pooling goes with it.
  convert(tmp_path / 'three', tmp_path / 'two', f'retriever={sources}/bert')
  three = Opened(tmp_path / 'three')
  assert three.spec.model.tied_retriever
  assert three.spec.model.pooling == 'mean'
  assert three.spec.text.retriever_format == '{title} {text}'
  converting.assert_equal(three.params['retriever'], huggingface.load_bert(sources / 'bert')[1])


def test_what_a_run_says_stays_with_its_reader(sources, rag_run):
  model, text = plan(f'reader={rag_run}', f'retriever={sources}/bert')
  assert model.reading == 'rag_sequence' and model.score_divisor == 1
  assert text.reader_format == '{title} / {text} // {query}'
  assert text.n_passages == 4
  # Not what it says of its retriever.
  assert text.retriever_format == '{title} {text}' and text.query_length == 64
  model, text = plan(
    f'reader={sources}/t5', f'query_encoder={rag_run}', f'passage_encoder={rag_run}'
  )
  assert model.reading == 'fusion' and text.n_passages == 20
  assert text.retriever_format == '{title} [SEP] {text}'
  assert text.query_length == 31
  # A whole run stays as it is.
  model, text = plan(rag_run)
  assert model == Opened(rag_run).spec.model
  assert text == Opened(rag_run).spec.text
  # Its own tower's lengths win over those of the one beside it.
  assert plan(rag_run, f'query_encoder={sources}/question')[1] == text


def test_texts_of_what_replaces_parts_of_a_run(sources, tmp_path):
  convert(tmp_path / 'run', sources / 't5', sources / 'bert')
  model, text = plan(tmp_path / 'run', sources / 'question', sources / 'context')
  assert model.reading == 'fusion' and model.pooling == 'cls'
  assert text.retriever_format == '{title} [SEP] {text}'
  assert (text.query_length, text.retriever_passage_length) == (128, 256)
  assert text.reader_query_length == 24  # The run's.
  model, text = plan(
    tmp_path / 'run', f'reader={sources}/bart', sources / 'question', sources / 'context'
  )
  assert model.reading == 'rag_token' and model.score_divisor == 1
  assert text.reader_format == '{title} / {text} // {query}'


def cosine(sources, path):
  """A sentence-transformers folder of unit vectors around the sources' BERT."""
  folders.sentence_transformer(path, 'mean_tokens')
  for name in ('config.json', 'model.safetensors', 'vocab.txt'):
    shutil.copy(sources / 'bert' / name, path / name)
  return path


ATLAS_QUERY = 'question: the lake answer: <extra_id_0>'


def test_how_retrievers_are_asked_and_what_their_scores_mean(sources, rag_run, tmp_path):
  """Cosines have a temperature of their own, for every reading; a run keeps its own."""
  unit = cosine(sources, tmp_path / 'unit')

  def found(*paths, reading=None):
    gathered = composing.gather([convert_lib.parse_source(str(path)) for path in paths])
    model = composing.make_model(gathered, reading)
    text = composing.make_text(gathered, {})
    return round(model.score_divisor, 6), text.retriever_query('the lake')

  own = {name: value for name, value in TEXT.items() if name != 'question_format'}
  own['query_format'] = 'find {question}'
  t5, bart, bert = (f'reader={sources}/t5', f'reader={sources}/bart', f'retriever={sources}/bert')
  temperature = part.COSINE_SCORES['temperature_score']
  for reader in (t5, bart):
    for reading in ('fusion', 'rag_sequence', 'rag_token'):
      assert found(reader, f'retriever={unit}', reading=reading) == (temperature, 'the lake')
  assert found(t5, bert) == (0.4, 'the lake')  # 0.1 times the root of 16.
  assert found(bart, bert) == (1, 'the lake')
  convert(tmp_path / 'run', sources / 't5', unit, text=own)
  run = tmp_path / 'run'
  assert found(run) == found(run, bart) == (temperature, 'find the lake')
  assert found(t5, f'retriever={run}') == (temperature, 'find the lake')
  assert found(run, bert) == (0.4, 'the lake')
  assert found(rag_run, f'retriever={unit}') == (temperature, 'the lake')
  # A run of Atlas's way: reader and retriever see one text, also when the reader is another.
  convert(tmp_path / 'atlas', sources / 't5', sources / 'bert', text=own | {'query_format': None})
  assert Opened(tmp_path / 'atlas').spec.text.query_format is None
  assert plan(tmp_path / 'atlas')[1].query_format is None
  assert found(tmp_path / 'atlas', bart)[1] == ATLAS_QUERY


def test_the_report_says_what_was_chosen(sources, tmp_path):
  unit = cosine(sources, tmp_path / 'unit')
  for dry_run in (True, False):
    text = '\n'.join(convert(tmp_path / 'run', sources / 't5', unit, dry_run=dry_run))
    assert "retriever: is asked '{question}' and reads '{title} {text}'" in text
    divisor = part.COSINE_SCORES['temperature_score']
    assert f'p(passage | question) is the softmax of cosines / {divisor} (scale_sc' in text
  model = Opened(tmp_path / 'run').spec.model
  assert model.teacher.temperature_score == model.temperature_score == divisor


def test_what_rag_says_is_of_its_reader_alone(sources):
  model, text = plan(
    sources / 'rag',
    f'reader={sources}/t5',
    f'query_encoder={sources}/question',
    f'passage_encoder={sources}/context',
  )
  assert model.reading == 'fusion' and text.n_passages == 20
  model, text = plan(
    f'reader={sources}/rag',
    f'query_encoder={sources}/question',
    f'passage_encoder={sources}/context',
  )
  assert model.reading == 'rag_sequence' and text.n_passages == 2
  assert text.question_format == '{question}'
  model, text = plan(sources / 'bart', sources / 'question', sources / 'context')
  assert model.reading == 'rag_token' and text.n_passages == 5
  assert text.passage_length == 300 and text.reader_query_length == 128


def test_towers_of_two_kinds(sources):
  with pytest.raises(
    ValueError, match=(r'pooling: DPR \(first token\) and BERT \(mean\); give two')
  ):
    plan(sources / 't5', f'query_encoder={sources}/question', f'passage_encoder={sources}/bert')
  with pytest.raises(ValueError, match='given as query_encoder=; are the two swapped'):
    plan(sources / 't5', f'query_encoder={sources}/context', f'passage_encoder={sources}/question')


def test_a_dry_run_foretells_failures(sources, tmp_path, capsys):
  both = sources / 't5', sources / 'bert'
  run = tmp_path / 'run'
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  assert dry(run, *both).failure is None
  for report, message in (
    (dry(tmp_path / 'full', *both), 'exists already'),
    (dry(tmp_path / 'full' / 'file' / 'x', *both), 'is not a folder'),
    (dry(run, *both, text=TEXT | {'query_length': 65}), '65 retriever tokens'),
    (dry(run, sources / 't5', sources / 'question'), 'no passage_encoder'),
    (dry(run, *both, reader_vocabulary=f'{tmp_path}/none.model'), 'none.model'),
    (
      dry(run, sources / 'bert', layer_norm='atlas', to_format='huggingface'),
      "released Atlas code's LayerNorm",
    ),
  ):
    assert message in report.failure
  single = dry(run, sources / 't5')
  assert single.failure is None
  assert single.lines[-1] == 'Not yet a run: give --from retriever=PATH as well.'
  weights = tmp_path / 'bert'
  weights.mkdir()
  for file in (sources / 'bert').iterdir():
    (weights / file.name).symlink_to(file)
  (weights / 'model.safetensors.sha256').write_text('0' * 64)
  assert 'SHA-256' in dry(run, sources / 't5', weights).failure
  assert dry(run, sources / 't5', weights, verify=False).failure is None
  assert (
    cli.main(
      ['convert', '--dry_run', '--from', str(sources / 't5'), '--to', str(tmp_path / 'full')]
    )
    == 1
  )
  captured = capsys.readouterr()
  assert 'shared.weight' in captured.out
  assert 'this conversion would fail' in captured.err
  assert not run.exists()


def test_a_dry_run_lists_hugging_face_s_names(sources, rag_run, tmp_path):
  report = dry(tmp_path / 'out', rag_run, to_format='huggingface')
  assert report.failure is None
  text = '\n'.join(report.lines)
  assert (
    '  reader/encoder/layers_0/attention/query/kernel float32[16, 8] -> '
    'reader/encoder.block.0.layer.0.SelfAttention.q.weight [8, 16], '
    'transposed'
  ) in text
  assert '-> passage_encoder/ctx_encoder.bert_model.embeddings' in text


def test_flags_and_arguments_that_say_nothing(sources, tmp_path):
  with pytest.raises(ValueError, match='--retriever_heads is of Atlas checkpoints'):
    convert(tmp_path / 'run', sources / 't5', sources / 'bert', retriever_heads=2)
  for argument in ('reader=', ''):
    with pytest.raises(ValueError, match='there is no path'):
      convert_lib.parse_source(argument)
