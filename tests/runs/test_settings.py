"""How an index is kept fresh: one gin file each, and one binding each."""

import pathlib

import pytest

from ralm_jax.data.text_config import TextConfig
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.runs import training
from ralm_jax.runs.settings import RetrievalConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
MACROS = (
  "MODEL_DIR = 'r'",
  'TRAIN_STEPS = 3',
  "TRAIN_QUESTIONS = 'q'",
  "READER_VOCABULARY = 's'",
  "RETRIEVER_VOCABULARY = 'v'",
  "INDEX = 'i'",
)


@pytest.fixture(autouse=True)
def clean_gin():
  import gin

  with gin.unlock_config():
    gin.clear_config()
  yield
  gin.clear_config()


def _arguments(*files, bindings=()):
  """Of what `train` would be called with."""
  import gin

  from ralm_jax.runs import gin_config as gin_utils

  gin_utils.import_tensorflow()
  gin_utils.parse(
    ['gin_configs/models/tiny.gin', 'gin_configs/runs/train.gin', *files],
    [*MACROS, *bindings],
    [str(ROOT)],
  )
  model, optimizer, steps = (
    gin.query_parameter(f'%{name}')
    for name in ('MODEL', 'RETRIEVER_OPTIMIZER', 'FREEZE_RETRIEVER_STEPS')
  )
  return {
    'model': model.scoped_configurable_fn(),
    'retriever_optimizer': optimizer,
    'freeze_retriever_steps': steps,
    'retrieval_cfg': gin.get_configurable(training.RetrievalConfig)(),
    'text': gin.get_configurable(TextConfig)(),
  }


def test_defaults():
  found = _arguments()
  assert found['retrieval_cfg'] == RetrievalConfig(index='i')
  assert isinstance(found['retrieval_cfg'], training.RetrievalConfig)
  assert found['retriever_optimizer'] is not None
  assert found['freeze_retriever_steps'] == 0
  assert not found['retrieval_cfg'].schedule
  assert found['retrieval_cfg'].index_is_missing


@pytest.mark.parametrize(
  'file,binding,expected',
  [
    ('fixed', 'RETRIEVER_OPTIMIZER = None', {'retriever_optimizer': None}),
    ('rerank', 'N_CANDIDATES = 128', {'n_candidates': 128}),
    (
      'full_refresh',
      "REFRESH_INDEX = '0-1000:500,1000-10000:2000'",
      {'refresh_index': '0-1000:500,1000-10000:2000'},
    ),
    ('background_refresh', 'FOLLOW_CURRENT = True', {'follow_current': True}),
    ('device', "RETRIEVAL_BACKEND = 'device'", {'backend': 'device'}),
  ],
)
def test_a_file_and_a_binding_do_the_same(file, binding, expected):
  by_file = _arguments(f'gin_configs/retrieval/{file}.gin')
  by_binding = _arguments(bindings=[binding])
  for found in (by_file, by_binding):
    for name, value in expected.items():
      holder = found if name in found else vars(found['retrieval_cfg'])
      assert holder[name] == value
  assert by_file['retrieval_cfg'] == by_binding['retrieval_cfg']
  by_file['retrieval_cfg'].check(by_file['model'], by_file['text'])


def test_query_side():
  model = _arguments('gin_configs/retrieval/query_side.gin')['model']
  assert model.query_side == 'stored' and not model.tied_retriever
  assert model.uses_stored_embeddings and not model.moves_passages


def test_other_bindings():
  found = _arguments(
    bindings=['FREEZE_RETRIEVER_STEPS = 7', "SEARCH_FILTER = 'document'", 'REFRESH_INDEX = 500']
  )
  assert found['freeze_retriever_steps'] == 7
  cfg = found['retrieval_cfg']
  assert cfg.search_filter.by == 'document'
  assert [s for s in range(1200) if cfg.schedule.fires(s)] == [0, 500, 1000]


def test_contradictions():
  model = RetrievalLM()
  text = TextConfig(n_passages=3)
  for changes, message in (
    ({'backend': 'device', 'address': 'a:1'}, 'index folder on this program'),
    ({'n_candidates': 2}, 'n_candidates 2 is fewer than the 3'),
    ({'refresh_index': 2, 'follow_current': True}, 'both refresh_index'),
    ({'refresh_index': '2-1:1'}, "'2-1:1'"),
  ):
    with pytest.raises(ValueError, match=message):
      RetrievalConfig(**changes).check(model, text)
  RetrievalConfig(n_candidates=3).check(model, text)
