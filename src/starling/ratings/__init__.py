"""Ratings of models from votes: Elo, Bradley–Terry, intervals, style control, from any battle or vote file."""
