"""The run launcher that dagster.yaml names: runs are executed by warm processes, which takes milliseconds.

A stock run starts an interpreter and imports everything anew. Here the daemon keeps one process for each code location,
the zygote (``zygote``), with the definitions loaded and nothing open. It forks children that execute runs one after the
other (``child``), tells how a child ended that could not tell itself, and holds each to its limit of memory. ``fork``
is the launcher as Dagster knows it, ``zygotes`` is its side of the zygotes, and ``watchful`` is what launches where
nothing can be forked.
"""
