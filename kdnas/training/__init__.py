"""Training: batches and views, the distillation loop, evaluation."""
