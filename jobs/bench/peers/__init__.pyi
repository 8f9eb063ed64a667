from . import environments as environments, probe as probe, stream as stream
from .decode import Batches as Batches, serve as serve
from .stream import Slot as Slot, cpu as cpu, drain as drain, peak_rss as peak_rss
