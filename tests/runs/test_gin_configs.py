"""Every configuration parses, and the sizes are those of the papers."""

import math
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from ralm_jax.interop import part
from ralm_jax.models.decoder_lm import DecoderLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'gin_configs'
# Parameters of T5 1.1 in millions, input and output embeddings apart.
T5_1_1 = {'small': 76.96, 'base': 247.58, 'large': 783.15, 'xl': 2849.76, 'xxl': 11135.33}
BERT_BASE = 108.89  # without the pooler, in millions
# Names that a run file leaves to the user.
REQUIRED = {
  'MODEL_DIR': '/tmp/run',
  'TRAIN_STEPS': 10,
  'TRAIN_QUESTIONS': 'q.jsonl',
  'READER_VOCABULARY': 'spiece.model',
  'RETRIEVER_VOCABULARY': 'vocab.txt',
  'CORPUS': 'corpus',
}


@pytest.fixture(autouse=True)
def clean_gin():
  import gin

  with gin.unlock_config():
    gin.clear_config()
  yield
  gin.clear_config()


def _parse(*files: str, **macros: str) -> None:
  from ralm_jax.runs import gin_config as gin_utils

  gin_utils.import_tensorflow()
  gin_utils.parse(files, [f'{k} = {v!r}' for k, v in macros.items()], [str(ROOT)])


def _model(size: str):
  import gin

  _parse(
    f'gin_configs/models/{size}.gin',
    'gin_configs/runs/train.gin',
    **{k: v for k, v in REQUIRED.items() if k != 'CORPUS'},
  )
  return gin.query_parameter('%MODEL').scoped_configurable_fn()


def _millions(tree) -> float:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6


@pytest.mark.parametrize('size', T5_1_1)
def test_sizes_of_t5(size):
  model = _model(size)
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert _millions(params['reader']) == pytest.approx(T5_1_1[size], rel=2e-4)
  assert _millions(params['retriever']) == pytest.approx(BERT_BASE, rel=2e-3)
  assert model.reader_config.dtype == 'bfloat16'


@pytest.mark.parametrize('size, millions', [('base', 139.42), ('large', 406.29)])
def test_sizes_of_bart_and_dpr(size, millions):
  """As Hugging Face counts BART's, without the constant bias of its logits."""
  model = _model(f'bart_{size}_dpr')
  params = jax.eval_shape(model.init, jax.random.key(0))
  reader = _millions(params['reader']) - 0.050265
  assert reader == pytest.approx(millions, rel=1e-3)
  assert _millions(params['retriever']) == pytest.approx(2 * BERT_BASE, rel=2e-3)


# Parameters as their authors' files have them; a tied head counts once.
DECODERS = {
  'smollm2_135m': 134_515_008,
  'smollm2_360m': 361_821_120,
  'smollm2_1_7b': 1_711_376_384,
  'llama2_7b': 6_738_415_616,
  'llama3_1b': 1_235_814_400,
  'llama3_3b': 3_212_749_824,
  'llama3_8b': 8_030_261_248,
  'mistral_7b': 7_241_732_096,
  'qwen2_5_0_5b': 494_032_768,
  'qwen2_5_1_5b': 1_543_714_304,
  'qwen2_5_7b': 7_615_616_512,
  'qwen3_0_6b': 596_049_920,
  'qwen3_1_7b': 1_720_574_976,
  'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'gemma3_270m': 268_098_176,
  'gemma3_1b': 999_885_952,
  'gemma3_4b': 3_880_263_168,
}


@pytest.mark.parametrize('size', DECODERS)
def test_sizes_of_decoder_only_readers(size):
  model = _model(size)
  config = model.reader_config
  text = jax.ShapeDtypeStruct((1, 4), 'int32')
  params = jax.eval_shape(DecoderLM(config).init, jax.random.key(0), text, text)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == DECODERS[size]
  # What `ralm convert` says of the retriever's scores.
  assert part.COSINE_SCORES == {name: getattr(model, name) for name in part.COSINE_SCORES}


def test_tiny_is_tiny():
  params = jax.eval_shape(_model('tiny').init, jax.random.key(0))
  assert _millions(params) < 15


RECIPES = sorted(str(p.relative_to(ROOT)) for p in FOLDER.rglob('*.gin'))


# Recipes that take their model from another file.
ANY_SIZE = tuple(
  f'gin_configs/recipes/{name}.gin' for name in ('lm_adapt', 'atlas', 'atlas_pretrain')
)
# What each size adds to them: partitions, dimensions of them, what is kept, scanned.
LAYOUTS = {
  'base': (1, 1, 'none', False),
  'large': (1, 1, 'dots', False),
  'xl': (8, 1, 'full', True),
  'xxl': (8, 2, 'full', True),
}

# Files of `ralm eval`.
EVALUATIONS = (
  'runs/evaluation',
  'runs/temporal_matrix',
  'few_shot_100_eval',
  'mmlu_zero_shot',
  'question_sets',
)


def _check_evaluation(file, capsys):
  from ralm_jax import cli

  text = (ROOT / file).read_text()
  if file != 'gin_configs/runs/evaluation.gin':
    text += (FOLDER / 'runs' / 'evaluation.gin').read_text()
  required = set(re.findall(r'^(\w+) = %gin.REQUIRED', text, re.M))
  if re.search(r'^TASKS = \[', text, re.M):
    required.discard('TASKS')
  status = cli.main(
    [
      'eval',
      f'--gin_file={file}',
      *(f'--gin.{name}={"[]" if name == "TASKS" else "x"}' for name in sorted(required)),
      f'--gin_search_paths={ROOT}',
      '--dry_run',
    ]
  )
  shown = capsys.readouterr()
  assert status == 0, shown.err
  assert "OUTPUT = 'x'" in shown.out


@pytest.mark.parametrize('file', RECIPES)
def test_every_file_parses(file, capsys):
  """By itself if it is a recipe, else after the files it is meant for."""
  from ralm_jax import cli

  if any(name in file for name in EVALUATIONS):
    _check_evaluation(file, capsys)
    return
  files = [file]
  folder = file.split('/')[1]
  if folder == 'models':
    files.append('gin_configs/runs/train.gin')
  elif folder == 'retrieval' or file.endswith(
    (
      'closed_book.gin',
      'atlas_released.gin',
      'few_shot.gin',
      'multiple_choice.gin',
      'pretext_tiny.gin',
    )
  ):
    files = ['gin_configs/models/tiny.gin', 'gin_configs/runs/train.gin', file]
  elif file in ANY_SIZE:
    files = ['gin_configs/models/tiny.gin', file]
  elif file.endswith('runs/rag.gin'):
    files = ['gin_configs/models/bart_base_dpr.gin', 'gin_configs/runs/train.gin', file]
  elif file.endswith('runs/in_context.gin'):
    files = ['gin_configs/models/smollm2_135m.gin', 'gin_configs/runs/train.gin', file]
  elif folder == 'runs':
    files.insert(0, 'gin_configs/models/tiny.gin')
  if file.endswith('models/decoder.gin'):
    files[0] = 'gin_configs/models/smollm2_135m.gin'  # which includes it
  if file.endswith('bart_dpr.gin'):
    files[0] = 'gin_configs/models/bart_base_dpr.gin'  # which includes it
  if file.endswith('retrieval_lm.gin'):
    files[0] = 'gin_configs/models/tiny.gin'  # which includes it
  run = 'warm_start.gin' if 'warm_start' in file else 'train.gin'
  text = (FOLDER / 'runs' / run).read_text()
  macros = {k: v for k, v in REQUIRED.items() if f'{k} = ' in text}
  if run == 'warm_start.gin':
    import gin

    _parse(*files, **macros)
    assert "MODEL_DIR = '/tmp/run'" in gin.config_str()
    return
  status = cli.main(
    [
      'train',
      *(f'--gin_file={f}' for f in files),
      *(f'--gin.{k}={v}' for k, v in macros.items()),
      f'--gin_search_paths={ROOT}',
      '--dry_run',
    ]
  )
  shown = capsys.readouterr()
  assert status == 0, shown.err
  assert "MODEL_DIR = '/tmp/run'" in shown.out


@pytest.mark.parametrize('size', LAYOUTS)
@pytest.mark.parametrize('file', ANY_SIZE)
def test_recipes_of_any_size(file, size):
  """What the files of the sizes set before there was one for all of them."""
  import gin
  from gin import config

  pretrain = 'pretrain' in file
  given = REQUIRED if not pretrain else {k: v for k, v in REQUIRED.items() if 'TRAIN' not in k}
  _parse(f'gin_configs/models/{size}.gin', file, **given)

  def value(name):
    found = gin.query_parameter(f'%{name}')
    while isinstance(found, config.ConfigurableReference):
      found = gin.query_parameter(f'%{found.scopes[-1]}')
    return found

  names = ('NUM_PARTITIONS', 'PARAMETER_PARTITIONING_DIMS', 'REMAT_POLICY', 'SCAN_LAYERS')
  assert tuple(value(name) for name in names) == LAYOUTS[size]
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert (model.query_side, model.tied_retriever) == (
    (None, True) if pretrain else ('stored', False)
  )
  assert (model.gold_score, model.temperature_score, model.temperature_gold) == (
    'perplexity',
    0.01,
    0.01,
  )
  assert model.reader_config.remat_policy == LAYOUTS[size][2]
  assert model.retriever_config.scan_layers == LAYOUTS[size][3]
  assert model.retriever_config.second_moment_layer_norm == file.endswith('/atlas.gin')
  expected = {
    'lm_adapt': (64, 4, 20, 4e-5, 4e-5, None),
    'atlas': (64, 4, 40, 4e-5, 4e-5, None),
    'atlas_pretrain': (128, 8, 20, 1e-4, 1e-5, 1000),
  }
  names = ('BATCH_SIZE', 'NUM_MICROBATCHES', 'N_PASSAGES', 'LEARNING_RATE')
  names += ('RETRIEVER_LEARNING_RATE', 'REFRESH_INDEX')
  assert tuple(value(name) for name in names) == expected[pathlib.Path(file).stem]


def test_what_the_recipes_of_one_size_are_now(tmp_path):
  new = '--gin_file=gin_configs/models/xl.gin --gin_file=gin_configs/recipes/atlas.gin'
  with pytest.raises(FileNotFoundError, match=f'atlas_xl.gin is now .* give {new}'):
    _parse('gin_configs/recipes/atlas_xl.gin')
  own = tmp_path / 'own.gin'
  own.write_text("include 'gin_configs/recipes/atlas_xl.gin'\n")
  with pytest.raises(ValueError, match=f'atlas_xl.gin is now .* give {new}, or include them'):
    _parse(str(own))
  with pytest.raises(ValueError, match='give the model first: .*tiny.gin .*atlas.gin'):
    _parse('gin_configs/recipes/atlas.gin', 'gin_configs/models/tiny.gin', **REQUIRED)
  with pytest.raises(ValueError, match='no model: give --gin_file=gin_configs/models/SIZE'):
    _parse('gin_configs/recipes/atlas.gin', **REQUIRED)


def test_released_differs_where_it_says():
  _parse(
    'gin_configs/models/tiny.gin',
    'gin_configs/runs/train.gin',
    'gin_configs/recipes/atlas_released.gin',
    **{k: v for k, v in REQUIRED.items() if k != 'CORPUS'},
  )
  import gin

  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.gold_reduction == 'mean' and model.kl_reduction == 'element'
  assert model.retriever_config.second_moment_layer_norm


def test_runs_as_a_module():
  """`python -m ralm_jax.train`, as T5X users type it, from another folder."""
  shown = subprocess.run(
    [
      sys.executable,
      '-m',
      'ralm_jax.train',
      '--gin_file=gin_configs/models/tiny.gin',
      '--gin_file=gin_configs/runs/train.gin',
      *(f'--gin.{k}={v}' for k, v in REQUIRED.items()),
      '--dry_run',
    ],
    capture_output=True,
    text=True,
    cwd='/',
    check=False,
  )
  assert shown.returncode == 0, shown.stderr
  assert "MODEL_DIR = '/tmp/run'" in shown.stdout
  assert 'Traceback' not in shown.stderr
