from .found import Place as Place, find as find
from .ranks import heard as heard, joined as joined, workers as workers
