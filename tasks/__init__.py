"""seqio tasks; importing this package registers all of them by name.

Nothing is read until one is used. Where its files and vocabularies come from then
is said by `DatasetConfig.make_task`, which the gin files of runs bind: with
runs/train.gin `MIXTURE_OR_TASK_NAME = 'nq_open'` trains on TRAIN_QUESTIONS.

Every record format (`data/questions/formats/catalogue.py`) is a task of its name,
so that a new benchmark needs no line here; other tasks are a line in `_TASKS`.
"""

from ralm_jax.data import pretext
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.tasks import language_modeling, multiple_choice, qa, registration, tfds_tasks

_TASKS = {
  **{name: (qa.jsonl_task, {'record_format': name}) for name in catalogue.FORMATS if name != 'qa'},
  'qa_jsonl': (qa.jsonl_task, {}),
  'mmlu': (multiple_choice.mmlu_task, {'record_format': 'mmlu'}),
  # Of a corpus's passages, with the objective that is configured or one by name.
  'passages': (language_modeling.passage_task, {}),
  'masked_spans': (language_modeling.passage_task, {'objective': pretext.MaskedSpans()}),
  'prefix_lm': (language_modeling.passage_task, {'objective': pretext.PrefixLM()}),
  'title_section': (language_modeling.passage_task, {'objective': pretext.TitleSection()}),
  'salient_spans': (language_modeling.passage_task, {'objective': pretext.SalientSpans()}),
  # Of TensorFlow Datasets.
  'tfds_nq_open': (tfds_tasks.tfds_task, tfds_tasks.NATURAL_QUESTIONS_OPEN),
  'tfds_trivia_qa': (tfds_tasks.tfds_task, tfds_tasks.TRIVIA_QA),
  'tfds_web_questions': (tfds_tasks.tfds_task, tfds_tasks.WEB_QUESTIONS),
  **{
    f'tfds_{name.partition("/")[0]}': (language_modeling.tfds_text_task, {'tfds_name': name})
    for name in ('wikipedia/20230601.en:1.0.0', 'wiki40b/en:1.3.0', 'c4/en:3.1.0')
  },
}

for _name, (_maker, _arguments) in _TASKS.items():
  registration.declare(_name, _maker, **_arguments)
