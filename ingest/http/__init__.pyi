from .address import is_named_host as is_named_host
from .config import FetchConfig as FetchConfig
from .fetcher import Fetcher as Fetcher
from .hosts import Demand as Demand, Grant as Grant, HostLoad as HostLoad, Limiter as Limiter
