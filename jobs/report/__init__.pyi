from . import dataset_page as dataset_page, ledger as ledger, peek as peek, published as published, scaling as scaling
from .ledger import read_metrics as read_metrics, read_run as read_run
