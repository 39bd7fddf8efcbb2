"""The field's datasets in the layouts in which people have them on disk.

`recognise(path)` says which layout a folder has; `open_layout(path)` lists its samples, labels and splits, and what it
leaves out and why; `LayoutDataset` decodes samples as a torch loader asks for them; `convert` makes one safe file of
all of them. One file a set; what they share: `layout` (the interface), `lists`, `pickles`, `stored` and `h5_files`
(reading, of which nothing is executed), `sound`, `front_ends` and `pictures` (decoding), `splits`.

Nothing here is imported by `import agm` or needed by it: decoders come with `pip install 'agm[media]'`.
"""

from agm.data.layouts.convert import Conversion, convert, load_layout
from agm.data.layouts.dataset import LayoutDataset, collate
from agm.data.layouts.layout import Layout, Part, Sample, Skipped
from agm.data.layouts.pickles import load_pickle
from agm.data.layouts.registry import LAYOUTS, Recognition, open_layout, recognise

__all__ = [
    "LAYOUTS",
    "Conversion",
    "Layout",
    "LayoutDataset",
    "Part",
    "Recognition",
    "Sample",
    "Skipped",
    "collate",
    "convert",
    "load_layout",
    "load_pickle",
    "open_layout",
    "recognise",
]
