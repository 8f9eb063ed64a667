from . import export as export
from .config import Config as Config
from .others import read_transformer as read_transformer
from .weights import (
    OfficialFile as OfficialFile,
    config_of as config_of,
    from_official as from_official,
    is_official as is_official,
    load_encoder as load_encoder,
    make_encoder as make_encoder,
    misfit as misfit,
    open_official as open_official,
    read_official as read_official,
    require_fit as require_fit,
    to_official as to_official,
)
