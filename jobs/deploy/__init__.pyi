from .kinds import KINDS as KINDS, make as make, require as require
from .values import Values as Values, parse_values as parse_values
