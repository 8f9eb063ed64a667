from . import crop as crop, entropy as entropy, image as image, jpeg as jpeg, phash as phash
from .cost import HEAD as HEAD, is_costly as is_costly, promises_too_much as promises_too_much
from .image import IMAGE_BUILD as IMAGE_BUILD, MAX_PIXELS as MAX_PIXELS, View as View
from .isolate import (
    Child as Child,
    ChildBroken as ChildBroken,
    InFlight as InFlight,
    Killed as Killed,
    alive as alive,
    leave_no_core as leave_no_core,
    own_file as own_file,
    private_folder as private_folder,
    suspects as suspects,
)
from .salvage import salvaged as salvaged
