"""Head to head of any models, and Arena-Hard."""
