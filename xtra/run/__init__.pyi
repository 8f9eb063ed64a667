from . import checkpoint as checkpoint, poison as poison, records as records
from .branch import require_trunk as require_trunk
from .checkpoint_writer import Saver as Saver
from .folder import (
    Opened as Opened,
    Parts as Parts,
    attempts as attempts,
    ended as ended,
    now as now,
    open_run as open_run,
    stalled as stalled,
    terms as terms,
)
from .leftovers import remove_leftovers as remove_leftovers
from .live import (
    at_work as at_work,
    say_driver as say_driver,
    this_process as this_process,
)
from .meter import attention_ends as attention_ends, cost as cost, shape_of as shape_of
from .metrics import Metric as Metric, read_metrics as read_metrics
from .recover import load_newest as load_newest
from .sinks import Recorder as Recorder, gaps as gaps, require as require
from .steps import Steps as Steps, crossed as crossed
from .tensor_files import save_tensors as save_tensors
