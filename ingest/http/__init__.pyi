from .config import FetchConfig as FetchConfig
from .fetcher import Fetcher as Fetcher
from .hosts import HostLoad as HostLoad
from .limiter import Demand as Demand, Grant as Grant, Limiter as Limiter
