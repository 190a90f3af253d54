"""The loop: proposals, promotion, stopping, workers, and the retraining that earns the front."""
