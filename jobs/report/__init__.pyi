from . import dataset_page as dataset_page, ledger as ledger, peek as peek, published as published, scaling as scaling
from .comparable import digested as digested, settings_digest as settings_digest
from .ledger import Run as Run, read_run as read_run, read_runs as read_runs
from .ledger_file import ledger_csv as ledger_csv, without_places as without_places
