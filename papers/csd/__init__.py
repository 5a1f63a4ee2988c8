"""Concrete score distillation: matching pairwise logit differences of student and teacher."""
