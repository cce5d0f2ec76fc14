"""The embedded offline world: prompts with computable truth, small speakers, a rubric judge that answers as an endpoint."""
