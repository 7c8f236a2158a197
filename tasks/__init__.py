"""seqio tasks; importing a module registers its tasks."""
