from .address import is_named_host as is_named_host
from .config import FetchConfig as FetchConfig
from .fetcher import Fetcher as Fetcher
from .hosts import HostLoad as HostLoad
from .limiter import Demand as Demand, Grant as Grant, Limiter as Limiter
