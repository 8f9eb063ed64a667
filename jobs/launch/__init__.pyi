from .ranks import heard as heard, joined as joined, workers as workers
