"""What every training stage shares: the plan of steps, optimiser and determinism, checkpoints with exact resume."""
