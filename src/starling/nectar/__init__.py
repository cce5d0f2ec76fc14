"""Stage 4: judgments become a Nectar-style dataset; reading and writing the public schema.

Source: dataset card berkeley-nest/Nectar. One row per prompt: `prompt` string (transcript), `answers` list of {answer
string, model string, rank double} stored best first with ranks 1.0 … K, `turns` int64 (user turns), `num_responses` int64,
`source` list of string, `good_natured` bool. Departures: K is not fixed at 7; what could not be ranked is counted by
outcome; the row order is that of the prompts (the original sorted by text, which puts turns of one conversation side by
side); `good_natured` may be null where an imported file does not say; tied answers, if the settings keep ties, share the rank of
the first of them (1, 2, 2, 4); a run's own dataset says in four more columns what is known about single pairs.

    assemble   prompts, responses, rankings and judgments → rows, in one pass over all four
    schema     rows ↔ parquet in the public schema, written and read as streams
    check      a whole file against every law of the schema, column by column
    summary    the figures of a file that its card shows
    imported   files that others wrote: what can be mended is, the rest is rejected by name

Every one of them holds a bounded number of rows, whatever the length of the file.
"""

from starling.nectar.assemble import Assembly, assemble, write_splits
from starling.nectar.check import check_nectar
from starling.nectar.imported import ImportReport, NectarImport, Rejected, import_nectar
from starling.nectar.schema import (
    EXTRA_COLUMNS,
    PUBLIC_COLUMNS,
    NectarFile,
    NectarWriter,
    from_nectar,
    read_nectar,
    to_nectar,
    write_nectar,
)
from starling.nectar.summary import ModelFigures, Ranks, Summary, summarise

__all__ = [
    "EXTRA_COLUMNS",
    "PUBLIC_COLUMNS",
    "Assembly",
    "ImportReport",
    "ModelFigures",
    "NectarFile",
    "NectarImport",
    "NectarWriter",
    "Ranks",
    "Rejected",
    "Summary",
    "assemble",
    "check_nectar",
    "from_nectar",
    "import_nectar",
    "read_nectar",
    "summarise",
    "to_nectar",
    "write_nectar",
    "write_splits",
]
