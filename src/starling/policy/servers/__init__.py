"""Rollouts from vLLM or SGLang servers with weight updates: `ServerRollouts`, the policy stage's sampler when
`policy.engine` names servers. How to start them, and what was and was not tried: docs/policy-servers.md.

    rollouts   load weights and see that they took, replies in order, first contact
    fleet      connections, shares, retries, servers left out
    vllm, sglang   what each engine is asked, and what its answers mean; the facts, with the releases they were read in
    replies    an answer that is whole and consistent, or a named error
    facts      which log-probs a server reports, and what they will do for
    weights    the folder that new weights are handed over in
"""

from starling.policy.servers.facts import Facts
from starling.policy.servers.rollouts import ServerRollouts

__all__ = ["Facts", "ServerRollouts"]
