"""Values that options of questions and passages may have, for flags and the library alike."""

# What answers are scored by: the names of the table in `evaluation/scores/by_task.py`.
METRICS_FAMILIES = (
  *('qa', 'label', 'kilt', 'long_answer', 'generation', 'question_generation'),
  *('multiple_choice', 'language_modeling'),
)
# Orders of a multiple choice's options.
PERMUTATIONS = ('single', 'cyclic', 'all')
# Where passages come from; with 'none' any model answers closed-book.
PASSAGES_FROM = ('index', 'file', 'none')
# How passages stand in a decoder-only reader's prompt; models/packing has the same.
PASSAGE_ORDERS = ('best_last', 'best_first')
# How demonstrations are chosen.
DEMONSTRATION_CHOICES = ('seed', 'nearest')
# What a question's exclusions drop.
SEARCH_FILTERS = ('passage', 'document', 'none')
# Where a passage names its page, for KILT's files.
PAGE_FIELDS = ('auto', 'document', 'id', 'title')
