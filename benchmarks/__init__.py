"""Speed and memory of growkit beside cp, dd and mergekit: `make bench`, or `python -m benchmarks`.

    models    random and sparse checkpoints to measure with
    measure   one command: seconds, CPU seconds, peak memory of its whole process tree
    jobs      what is measured, and against what
    parts     what a gigabyte costs, part by part
    tables    results as Markdown
    first_files   part of a growth that is too large for the disk

Every figure of a table comes from one run. The commands of a job take turns, so that a disk or a
neighbour that changes its mind meets them all; the median is what counts.
"""
