from .config import FetchConfig as FetchConfig
from .fetcher import Fetcher as Fetcher
from .hosts import Demand as Demand, Grant as Grant, HostLoad as HostLoad, Limiter as Limiter
