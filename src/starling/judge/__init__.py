"""The AI judge: a versioned rubric, strict grammars for its replies, and the calls that rank K answers or compare two."""
