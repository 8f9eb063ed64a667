from . import carry as carry, keys as keys
from .columns import Columns as Columns
from .datasets import digest as digest, is_dataset as is_dataset
from .files import (
    ACCEPTED as ACCEPTED,
    list_name as list_name,
    list_sha256 as list_sha256,
    skipped as skipped,
)
from .line_numbers import row_places as row_places
from .source import (
    MAX_URL as MAX_URL,
    check_url as check_url,
    label_counts as label_counts,
    links_of as links_of,
    plan_batches as plan_batches,
    plan_units as plan_units,
    quote as quote,
)
from .where import Rule as Rule, parse as parse
