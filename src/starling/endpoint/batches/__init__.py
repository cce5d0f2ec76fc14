"""Calls through a provider's batch API: files out and in, at half the price, within a day.

    shards      unanswered requests into files of bounded size, each call announced in the journal
    wire        the APIs of OpenAI and Anthropic
    lifecycle   a file's way through the API, with every step in the journal before it is taken
    results     lines that came back, into the journal
    endpoint    `BatchApiEndpoint`: all of it behind the door that every model has

Law 1 in batches: nothing is created twice. Before a batch is created, its row in the journal says so; whoever finds the row
without an id asks the provider's list first. At whatever instant a process dies, the next one takes every file up where it was.
"""

from starling.endpoint.batches.endpoint import BatchApiEndpoint
from starling.endpoint.batches.lifecycle import Clock

__all__ = ["BatchApiEndpoint", "Clock"]
