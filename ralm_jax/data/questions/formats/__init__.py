"""The layouts in which question sets are published."""
