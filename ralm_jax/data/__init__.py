"""Text to arrays: vocabularies, corpora, questions, pretext objectives and the pipeline."""
