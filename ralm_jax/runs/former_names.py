"""What modules, parameters and files of configurations were called before."""

from __future__ import annotations

import re

# (former package, package of now): modules that kept their names.
_FOLDERS = {
  ('', 'checkpoints'): 'specification',
  ('', 'commands'): 'launch seeds serve swap',
  ('', 'evaluation'): 'leakage',
  ('', 'files'): 'progress quiet',
  ('', 'interop'): 'convert',
  ('', 'jobs'): 'report',
  ('', 'preparation'): 'prepare',
  ('', 'runs'): 'live_edits warm_start',
  ('data', 'data.corpus'): 'identifiers passage_ids passages shard_set shards',
  ('data', 'data.pretext'): 'crops noise salient_spans',
  ('data', 'data.questions'): 'answer_patterns choice_tokens few_shot file_passages '
  'multiple_choice',
  ('data', 'data.text'): 'byte_pair_vocabulary templates tokenization vocabularies',
  ('data', 'files'): 'atomic_files input_files json_records',
  ('evaluation', 'evaluation.scores'): 'statistics',
  ('evaluation', 'jobs'): 'cells search_time watch',
  ('interop', 'files'): 'checksums new_folder',
  ('interop', 'interop.files'): 'embedding_files msgpack_tensors restricted_pickle '
  'safetensors_file tensor_source torch_archive weight_files',
  ('training', 'runs'): 'pinning refreshing',
}
_RENAMED = {
  **dict.fromkeys(('add', 'replace', 'delete'), 'commands.edits'),
  'build_corpus': 'commands.corpus',
  'eval_flags': 'commands.flags',
  'job_config': 'jobs.config',
  'job_inputs': 'jobs.inputs',
  'job_retrieval': 'jobs.open_index',
  'job_worker': 'jobs.worker',
  'models.passage_effects': 'models.readings',
  'models.rag_loss': 'models.readings.marginal',
  'data.corpus_building': 'data.corpus.building',
  'data.fact_formats': 'data.questions.formats.facts',
  'data.generation_formats': 'data.questions.formats.generation',
  'data.kilt_format': 'data.questions.formats.kilt',
  'data.manifest': 'data.corpus.corpus_manifest',
  'data.mmlu_format': 'data.questions.formats.mmlu',
  'data.pretext_tokens': 'data.pretext.tokens',
  'data.published_records': 'data.questions.formats.records',
  'data.qa_formats': 'data.questions.formats.qa',
  'data.question_formats': 'data.questions.formats.catalogue',
  'data.question_rows': 'data.questions.rows',
  'data.temporal_formats': 'data.questions.formats.temporal',
  'evaluation.generation_metrics': 'evaluation.scores.generation',
  'evaluation.job_results': 'jobs.results',
  'evaluation.job_tables': 'jobs.tables',
  'evaluation.kilt_metrics': 'evaluation.scores.kilt',
  'evaluation.mmlu_categories': 'evaluation.scores.mmlu',
  'evaluation.multiple_choice': 'evaluation.choice_evaluator',
  'evaluation.retrieval_metrics': 'evaluation.scores.retrieval',
  'evaluation.tables': 'jobs.markdown',
  'evaluation.task_metrics': 'evaluation.scores.by_task',
  'gin_utils': 'runs.gin_config',
  'interop.conversion': 'interop.convert',
  'losses.statistics': 'losses.diagnostics',
  'refresh': 'runs.following',
  'retrieval.connection': 'retrieval.connect',
  'retrieval.device_index': 'retrieval.device.index',
  'retrieval.device_lead': 'retrieval.device.lead',
  'retrieval.device_residency': 'retrieval.device.residency',
  'retrieval.device_search': 'retrieval.device.search',
  'retrieval.device_view': 'retrieval.device.view',
  'retrieval.refresh': 'retrieval.publisher',
  'run_config': 'runs.settings',
  'run_retrieval': 'runs.index',
  'training.checkpoints': 'checkpoints.store',
  'training.reranking': 'training.rerank_step',
  'training.warm_start': 'training.crop_training',
}
MODULES = {
  **{
    f'ralm_jax.{former}.{name}'.replace('..', '.'): f'ralm_jax.{now}.{name}'
    for (former, now), names in _FOLDERS.items()
    for name in names.split()
  },
  **{f'ralm_jax.{former}': f'ralm_jax.{now}' for former, now in _RENAMED.items()},
}
# Former modules of functions that made one task each, and one such task.
_TASK_MODULES = {
  'tasks.fact_checking': 'fever',
  'tasks.generation': 'ms_marco',
  'tasks.kilt': 'kilt_nq',
  'tasks.temporal': 'templama',
}
# Former parameters of `train`: what takes their place, and the macro that sets it.
PARAMETERS = {
  'train_dataset_cfg': ('train.data', ''),
  'reader_vocabulary': ('Vocabularies.reader', 'READER_VOCABULARY'),
  'retriever_vocabulary': ('Vocabularies.retriever', 'RETRIEVER_VOCABULARY'),
  'reader_optimizer': ("train.optimizers = {'reader': …}", 'READER_OPTIMIZER'),
  'retriever_optimizer': ("train.optimizers = {'retriever': …}", 'RETRIEVER_OPTIMIZER'),
  'retrieval_cfg': ('train.retrieval', ''),
  'checkpoint_cfg': ('train.checkpoints', ''),
  'initial_checkpoint_path': ('StartingPoint.checkpoint', 'INITIAL_CHECKPOINT_PATH'),
  'initial_params': ('StartingPoint.params', 'INITIAL_PARAMS'),
  'num_microbatches': ('StepOptions.num_microbatches', 'NUM_MICROBATCHES'),
  'freeze_retriever_steps': ('StepOptions.freeze_retriever_steps', 'FREEZE_RETRIEVER_STEPS'),
  'global_clip_norm': ('StepOptions.global_clip_norm', 'GLOBAL_CLIP_NORM'),
  'retrieval_lookahead': ('StepOptions.retrieval_lookahead', 'RETRIEVAL_LOOKAHEAD'),
  'eval_questions': ('TrainingEvaluation.questions', 'EVAL_QUESTIONS'),
  'eval_record_format': ('TrainingEvaluation.record_format', 'RECORD_FORMAT'),
  'eval_on_error': ('TrainingEvaluation.on_error', 'ON_ERROR'),
  'eval_metrics': ('TrainingEvaluation.metrics', 'METRICS'),
  'eval_permutations': ('TrainingEvaluation.permutations', 'EVAL_PERMUTATIONS'),
  'eval_period': ('TrainingEvaluation.period', 'EVAL_PERIOD'),
  'eval_num_examples': ('TrainingEvaluation.num_examples', 'EVAL_NUM_EXAMPLES'),
  'eval_batch_size': ('TrainingEvaluation.batch_size', 'EVAL_BATCH_SIZE'),
  'eval_answering': ('TrainingEvaluation.answering', ''),
}
# They read SIZE_… of a model file, whose defaults would replace what they decide.
RECIPES_OF_ANY_SIZE = ('lm_adapt', 'atlas', 'atlas_pretrain')
# Files that are now several, to be given or included in this order.
FILES = {
  f'gin_configs/recipes/{recipe}_{size}.gin': (
    f'gin_configs/models/{size}.gin',
    f'gin_configs/recipes/{recipe}.gin',
  )
  for recipe in RECIPES_OF_ANY_SIZE
  for size in ('base', 'large', 'xl', 'xxl')
}


def hint(message: str) -> str:
  """What a message, or a file's name, calls by its former name; '' if nothing."""
  return _module(message) or _parameter(message) or _file(message)


def _module(message: str) -> str:
  match = re.search(r"No module named '([\w.]+)'", message)
  if not match:
    return ''
  name = match[1]
  task = _TASK_MODULES.get(name.removeprefix('ralm_jax.'))
  if task:
    return f' Its tasks are names now, such as MIXTURE_OR_TASK_NAME = {task!r}.'
  now = f'ralm_jax.{name}' if name.split('.')[0] == 'tasks' else MODULES.get(name)
  return f' {name} is now {now}.' if now else ''


def _parameter(message: str) -> str:
  match = re.search(r"'(?:[\w.]+\.)?train' doesn't have a parameter named '(\w+)'", message)
  if not match or match[1] not in PARAMETERS:
    return ''
  now, macro = PARAMETERS[match[1]]
  return f' It is now train_script.{now}' + (f'; or set the macro {macro}.' if macro else '.')


def _file(message: str) -> str:
  for old, files in FILES.items():
    if old.removeprefix('gin_configs/') in message:
      flags = ' '.join(f'--gin_file={file}' for file in files)
      return f' {old} is now {" and ".join(files)}: give {flags}, or include them in this order.'
  return ''
