from . import fit as fit, fit_text as fit_text, statistics as statistics, table as table
from .config import Config as Config
from .doubling import Doubling as Doubling, next_doubling as next_doubling
from .student import p_value as p_value, t_quantile as t_quantile
from .table import grouped as grouped
