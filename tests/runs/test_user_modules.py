"""The user's own modules, and what configurations of before are told."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from ralm_jax.runs import former_names, gin_config, training, user_modules
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
RALM = pathlib.Path(sys.executable).with_name('ralm')


@pytest.fixture(autouse=True)
def clean(monkeypatch):
  import gin

  monkeypatch.setattr(sys, 'path', list(sys.path))
  with gin.unlock_config():
    gin.clear_config()
  yield
  gin.clear_config()


def _parse(folder, text):
  file = folder / 'own.gin'
  file.write_text(f'from __gin__ import dynamic_registration\n{text}\n')
  gin_config.parse([str(file)], [], [str(ROOT)])


@pytest.mark.parametrize(
  'statement,now',
  [
    ('from ralm_jax.data import crops', 'ralm_jax.data.pretext.crops'),
    ('from ralm_jax.training import warm_start', 'ralm_jax.training.crop_training'),
    ('from ralm_jax import warm_start', 'ralm_jax.runs.warm_start'),
    ('from ralm_jax.evaluation import task_metrics', 'ralm_jax.evaluation.scores.by_task'),
  ],
)
def test_modules_that_moved(statement, now, tmp_path):
  with pytest.raises(ValueError, match=f'No module named .* is now {re.escape(now)}\\.'):
    _parse(tmp_path, statement)


def test_tasks_that_moved(tmp_path, monkeypatch):
  """Where the user has a tasks.py, too."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p and pathlib.Path(p) != ROOT])
  for name in [name for name in sys.modules if name.split('.')[0] == 'tasks']:
    monkeypatch.delitem(sys.modules, name)
  with pytest.raises(ValueError, match='No module named .*is now ralm_jax.tasks'):
    _parse(tmp_path, 'from tasks import qa')
  (tmp_path / 'tasks.py').write_text('')
  with pytest.raises(ValueError, match=r'tasks.qa is now ralm_jax.tasks.qa\.'):
    _parse(tmp_path, 'from tasks import qa')
  with pytest.raises(ValueError, match=r'MIXTURE_OR_TASK_MODULE: .* is now ralm_jax.tasks.qa\.'):
    user_modules.load('tasks.qa')
  with pytest.raises(ValueError, match=f"'my_tasks'.* current folder .{tmp_path}"):
    user_modules.load('my_tasks')


def test_tasks_that_are_names(tmp_path):
  with pytest.raises(ValueError, match="kilt'.* names now, such as .* = 'kilt_nq'"):
    _parse(tmp_path, 'from ralm_jax.tasks import kilt')


def test_every_module_is_where_it_is_said_to_be():
  for former, now in former_names.MODULES.items():
    assert importlib.util.find_spec(now) is not None, now
    try:
      assert importlib.util.find_spec(former) is None, former
    except ModuleNotFoundError:
      pass


@pytest.mark.parametrize('name', former_names.PARAMETERS)
def test_former_parameters_of_train(name, tmp_path):
  now, macro = former_names.PARAMETERS[name]
  holder, _, field = re.match(r'(\w+)(\.)(\w+)', now).groups()
  assert field in (
    training.train.__kwdefaults__ | training.train.__annotations__
    if holder == 'train'
    else getattr(training, holder).__dataclass_fields__
  )
  if macro:
    assert re.search(rf'^{macro} = ', (ROOT / 'gin_configs/runs/train.gin').read_text(), re.M)
  with pytest.raises(ValueError) as raised:
    _parse(tmp_path, f'from ralm_jax import train as train_script\ntrain_script.train.{name} = 2')
  message = str(raised.value)
  assert f"'{name}'" in message and f'It is now train_script.{now}' in message
  assert macro in message


OWN_TASK = """
from ralm_jax.data.text_config import TextConfig
from ralm_jax.tasks import qa

def my_task(train, reader_vocabulary, retriever_vocabulary):
  return qa.jsonl_task('my_qa', train=train, text=TextConfig(reader_format='{query}'),
                       reader_vocabulary=reader_vocabulary,
                       retriever_vocabulary=retriever_vocabulary)
"""
OWN_CONFIGURATION = """
from __gin__ import dynamic_registration
{imports}
include 'gin_configs/models/tiny.gin'
include 'gin_configs/runs/train.gin'
include 'gin_configs/runs/closed_book.gin'
MIXTURE_OR_TASK_NAME = {task}
MIXTURE_OR_TASK_MODULE = {module}
TRAIN_STEPS = 1
{more}
"""


@pytest.mark.parametrize('way', ['import', 'module'])
def test_the_console_script_imports_what_lies_beside_the_user(way, tmp_path):
  """From another folder than the checkout; his own tasks.py is in nobody's way."""
  (tmp_path / 'data').mkdir()
  data = tiny.make_data(tmp_path / 'data')
  files = f"'{data.reader_vocabulary}', '{data.retriever_vocabulary}'"
  (tmp_path / 'tasks.py').write_text('raise RuntimeError("not a module of tasks")\n')
  own = OWN_TASK
  if way == 'module':
    own += f"\nmy_task('{data.questions}', {files})\n"
    configuration = dict(imports='', task="'my_qa'", module="'my_tasks'", more='')
  else:
    configuration = dict(
      imports='import my_tasks',
      task='@my_tasks.my_task()',
      module='None',
      more=f"""
my_tasks.my_task:
  train = '{data.questions}'
  reader_vocabulary = %READER_VOCABULARY
  retriever_vocabulary = %RETRIEVER_VOCABULARY
""",
    )
  (tmp_path / 'my_tasks.py').write_text(own)
  (tmp_path / 'own.gin').write_text(OWN_CONFIGURATION.format(**configuration))
  shown = subprocess.run(
    [
      RALM,
      'train',
      '--gin_file=own.gin',
      '--gin.MODEL_DIR=run',
      '--gin.TRAIN_QUESTIONS=unused',
      f'--gin.READER_VOCABULARY={data.reader_vocabulary}',
      f'--gin.RETRIEVER_VOCABULARY={data.retriever_vocabulary}',
    ],
    cwd=tmp_path,
    env=tiny.environment(1),
    capture_output=True,
    text=True,
    check=False,
  )
  assert shown.returncode == 0, shown.stderr
  assert (tmp_path / 'run' / 'model.json').exists()
