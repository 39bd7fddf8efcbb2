"""The field's datasets in the layouts in which people have them on disk.

`recognise(path)` says which layout a folder has; `open_layout(path)` lists its samples, labels and splits, and what it
leaves out and why; `LayoutDataset` decodes samples as a torch loader asks for them; `convert` makes one safe file of
all of them. One file a set; what they share: `layout` (the interface), `lists`, `pickles`, `stored` and `h5_files`
(reading, of which nothing is executed), `sound`, `front_ends` and `pictures` (decoding), `splits` and `split_lists`,
`downloads` (what is no layout yet).

Sets larger than memory have the same interface: folders that Hugging Face's `datasets` saved and WebDataset's shards.
`stream_shards` and `stream_rows` read them from one end to the other, and `feed` makes batches ahead for a device.

Nothing here is imported by `import agm` or needed by it: decoders come with `pip install 'agm-torch[media]'`.
"""

from agm.data.layouts.convert import Conversion, convert, load_layout
from agm.data.layouts.dataset import LayoutDataset, collate
from agm.data.layouts.feeding import Feed, feed
from agm.data.layouts.layout import Layout, Part, Sample, Skipped
from agm.data.layouts.mosei import sentiment_figures
from agm.data.layouts.pickles import load_pickle
from agm.data.layouts.registry import LAYOUTS, Recognition, open_layout, recognise
from agm.data.layouts.split_lists import Listed, split_by_lists
from agm.data.layouts.streaming import Streamed, stream_rows, stream_shards

__all__ = [
    "LAYOUTS",
    "Conversion",
    "Feed",
    "Layout",
    "LayoutDataset",
    "Listed",
    "Part",
    "Recognition",
    "Sample",
    "Skipped",
    "Streamed",
    "collate",
    "convert",
    "feed",
    "load_layout",
    "load_pickle",
    "open_layout",
    "recognise",
    "sentiment_figures",
    "split_by_lists",
    "stream_rows",
    "stream_shards",
]
