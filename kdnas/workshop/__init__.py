"""What a study works with, opened and checked: data, teacher, family, costs, and the evaluators that score."""
