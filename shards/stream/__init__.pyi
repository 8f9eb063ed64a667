from . import order as order
from .inverse import (
    places_in_batches as places_in_batches,
    ranks as ranks,
    sightings as sightings,
)
from .mixture import (
    MixedSequence as MixedSequence,
    Mixture as Mixture,
    read_mixture as read_mixture,
    shown_of_each as shown_of_each,
    split_part as split_part,
)
from .order import (
    U64 as U64,
    Order as Order,
    Sequence as Sequence,
    batch as batch,
    mix64 as mix64,
    permutation as permutation,
    uniform as uniform,
)
from .sample import Encoded as Encoded, Sample as Sample
from .stream import (
    Cursor as Cursor,
    Once as Once,
    ReadConfig as ReadConfig,
    Stream as Stream,
    once as once,
    seen_in as seen_in,
    state_of as state_of,
)
from .view import Dataset as Dataset
