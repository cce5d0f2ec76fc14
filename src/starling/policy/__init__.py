"""Stage 6: tune a policy against a reward model, with APA or PPO and a critic."""
