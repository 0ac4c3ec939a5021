"""The only room that opens files: checkpoints in, checkpoints out.

    header     the bytes before the data of a safetensors file, read strictly
    read       a path → Checkpoint, or a refusal that says what to do instead
    snapshot   a folder in the Hub's cache, of which some files may not be here yet
    side_files what travels with the weights: tokenizer, processor, custom code
    maps       files of dense maps, read and written whole
    rows       rows of a stored tensor, by pread
    write      one output file: header, tensors, checksums
    stream     bytes to an open file, as fast as the disk takes them
    locks      one process at a time, or several that agree
    marks      done-marks: which files are complete, whoever wrote them
    commit     OUT.partial, and the rename to OUT
    memory     what this process has held
    scratch    a folder that is gone afterwards
    check      a finished OUT against its own growkit.json
    summary    the file of --summary
    page       the file of --html
    faults     the operating system's errors in growkit's words

The law: sources are only ever read, and nothing half-written is ever visible under its final name.
No value of a weight is looked at here, and no torch.
"""

from growkit.store.check import check_files
from growkit.store.commit import Workspace
from growkit.store.maps import read_maps, write_maps
from growkit.store.marks import Marks
from growkit.store.read import open_checkpoint, read_config
from growkit.store.rows import SourceRows
from growkit.store.write import ShardWriter

__all__ = [
    "Marks", "ShardWriter", "SourceRows", "Workspace", "check_files", "open_checkpoint",
    "read_config", "read_maps", "write_maps",
]  # fmt: skip
