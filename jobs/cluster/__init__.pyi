from .follow_job import Follower as Follower
from .group import Progress as Progress, ingest_all as ingest_all, train_all as train_all
from .node_facts import interface_of as interface_of
from .preflight import check_nodes as check_nodes
from .probes import probe_all as probe_all, probing_device as probing_device
from .side_by_side import side_by_side as side_by_side
from .start import start_ray as start_ray
from .submit import (
    STOP_SECONDS as STOP_SECONDS,
    Jobs as Jobs,
    Submission as Submission,
    name_of as name_of,
)
from .wanted import (
    SUBMITTED_WITH as SUBMITTED_WITH,
    GroupWords as GroupWords,
    TryLater as TryLater,
    Workers as Workers,
    WorkersWords as WorkersWords,
    on_a_cluster as on_a_cluster,
    version as version,
)
