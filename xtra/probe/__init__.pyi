from . import embedding as embedding
from .config import Config as Config, EmbedConfig as EmbedConfig, published_resize as published_resize
from .encoders import of_xtra as of_xtra, open_encoder as open_encoder
from .features import Encode as Encode, Feature as Feature
from .finished import unneeded_states as unneeded_states
from .heads import Head as Head, Schedule as Schedule
from .probe import new_head as new_head, open_probed as open_probed, run as run
from .result import ProbeResult as ProbeResult, read_result as read_result, unpack as unpack
