"""What a run has done: its lock file, its trials in Optuna's storage, its front, and the files derived from them."""
