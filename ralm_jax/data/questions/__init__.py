"""Questions, their files and their choices."""

from ralm_jax.data.questions.reading import Question, read_questions

__all__ = ['Question', 'read_questions']
